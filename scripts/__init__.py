"""Programs: `python -m scripts.train`, `python -m scripts.index`."""
