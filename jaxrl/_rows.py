"""Choosing rows."""

import numpy as np


def shuffled_by_class(labels: np.ndarray | None, size: int, rng: np.random.Generator) -> np.ndarray:
  """The rows `[size]` in a random order of which every beginning has each class's share.

  A class of n rows has at least floor(t n) and at most ceil(t n) + 1 of them among the
  first t of all. Without labels: a permutation.
  """
  if labels is None:
    return rng.permutation(size)
  place = np.empty(size)
  for label in np.unique(labels):
    rows = rng.permutation(np.flatnonzero(labels == label))
    place[rows] = (np.arange(len(rows)) + rng.random(len(rows))) / len(rows)
  return np.argsort(place)
