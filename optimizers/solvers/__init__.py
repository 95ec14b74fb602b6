"""Whole-problem iterations that no gradient transformation expresses."""
