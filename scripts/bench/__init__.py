"""Benchmarks: `python -m scripts.bench --suite train`. A suite is a file of this package."""
