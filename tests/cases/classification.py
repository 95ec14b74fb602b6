"""Rows of `objectives/classification/`."""

from . import ObjectiveRow

ROWS = [
  ObjectiveRow("cross_entropy()"),
]
