"""Rows of `objectives/augmentation/`."""

from . import ObjectiveRow

ROWS = [
  ObjectiveRow(
    "mixup(alpha=1.0) | cross_entropy() + squared_error()",
    batch="whole",
    why="the batch has one ratio and one permutation, which go with the order of the examples",
    xfail={"permutation": "the permutation goes with the order of the examples"},
    limits=(("mixup(alpha=0) | cross_entropy()", "cross_entropy()"),),
    bad={
      "mixup(alpha=-1) | cross_entropy()": "alpha must be at least 0, got -1",
      "mixup(num_classes=0) | cross_entropy()": "num_classes must be a whole number",
    },
  ),
  ObjectiveRow(
    "regmixup(alpha=20.0)",
    batch="whole",
    why="the batch has one ratio and one permutation, which go with the order of the examples",
    xfail={"permutation": "the permutation goes with the order of the examples"},
    limits=(
      ("regmixup(eta=0, official=False)", "cross_entropy()"),
      ("regmixup(alpha=0, eta=3)", "2 * cross_entropy()"),
    ),
    bad={
      "regmixup(alpha=-1)": "alpha must be at least 0, got -1",
      "regmixup(eta=-1)": "eta must be at least 0, got -1",
    },
  ),
]
