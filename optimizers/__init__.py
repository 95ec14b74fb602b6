"""Gradient transformations, one file per paper: `from optimizers.sam import sam`."""
