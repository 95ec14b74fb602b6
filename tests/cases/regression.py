"""Rows of `objectives/regression/`."""

from . import ObjectiveRow

ROWS: list[ObjectiveRow] = []
