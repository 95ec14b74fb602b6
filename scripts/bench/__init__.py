"""Benchmarks: `python -m scripts.bench --suite train`; docs/bench/README.md says how to read them.

A suite is a file here that begins with no underscore. Its `suite(peers)` yields Cases.
"""
