"""Rows of `objectives/reweighting/`."""

from . import ObjectiveRow

ROWS: list[ObjectiveRow] = []
