"""The test suite: a row per method in `cases`, shared checks in `*_properties.py`."""
