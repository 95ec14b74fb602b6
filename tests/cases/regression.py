"""Rows of `objectives/regression/`."""

from . import ObjectiveRow

ROWS = [
  ObjectiveRow("squared_error()"),
]
