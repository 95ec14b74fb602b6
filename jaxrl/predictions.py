"""What a classifier said about every example of a split: `predictions.npz` of a run.

Its arrays are named `validation/logits`, `test/labels` and so on: `logits [N, classes]`, and
`labels`, `group` and `index [N]` in the order of the split.
"""

import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

import numpy as np

FILE = "predictions.npz"
SPLITS = ("validation", "test")
Predictions: TypeAlias = dict[str, np.ndarray]


def joined(batches: Iterable[Mapping[str, Any]], axis: int = 0) -> Predictions:
  """The batches one after the other along the axis of examples, without padding.

  Args:
    batches: each with a `mask` like the other columns.
    axis: that of the examples; those before it stand for members.

  Example:
    >>> batch = {"labels": np.array([3, 4]), "mask": np.array([1.0, 0.0])}
    >>> joined([batch, batch])
    {'labels': array([3, 3])}
  """
  whole = [{name: np.asarray(column) for name, column in batch.items()} for batch in batches]
  columns = {name: np.concatenate([b[name] for b in whole], axis) for name in whole[0]}
  mask = columns.pop("mask")
  rows = np.flatnonzero(mask[(0,) * axis])
  return {name: np.take(column, rows, axis) for name, column in columns.items()}


def write(folder: str | os.PathLike[str], splits: Mapping[str, Predictions]) -> None:
  """Writes the predictions on each split, at once or not at all."""
  path = pathlib.Path(folder) / FILE
  arrays: dict[str, Any] = {
    f"{split}/{name}": x for split, own in splits.items() for name, x in own.items()
  }
  unfinished = path.with_name(f".unfinished-{FILE}")
  np.savez(unfinished, **arrays)
  unfinished.replace(path)


def read(folder: str | os.PathLike[str], split: str) -> Predictions | None:
  """The predictions on a split; `None` where a run has written none."""
  path = pathlib.Path(folder) / FILE
  if not path.exists():
    return None
  with np.load(path) as file:
    return {
      name.partition("/")[2]: file[name] for name in file.files if name.startswith(f"{split}/")
    }
