"""Experiments on what papers claim: a file a method, run by `python -m scripts.evidence NAME`."""
