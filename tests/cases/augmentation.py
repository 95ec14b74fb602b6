"""Rows of `objectives/augmentation/`."""

from . import ObjectiveRow

ROWS: list[ObjectiveRow] = []
