"""Calibrators, after training or online: `init`, `predict`, `update`."""
