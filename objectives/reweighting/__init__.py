"""Loss transforms: optax transformations whose updates are Losses."""
