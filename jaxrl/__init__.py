"""The shared core: what runs the transforms of `optimizers` and `objectives`."""
