"""Two programs in alternation in one process: medians and their ratio."""

import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class Ratio(NamedTuple):
  """Medians in seconds, and the median over rounds of their ratio with its quartiles."""

  name: str
  ours: float
  peer: float
  ratio: float
  low: float
  high: float

  def row(self) -> str:
    """The row of a Markdown table."""
    spread = f"{self.low:.3f} to {self.high:.3f}"
    return (
      f"| {self.name} | {1e3 * self.ours:.3f} | {1e3 * self.peer:.3f} | "
      f"{self.ratio:.3f} | {spread} |"
    )


HEADER = "| case | ours, ms | peer, ms | ratio | its quartiles |\n|---|---|---|---|---|"


def alternate(name: str, ours: Callable[[], None], peer: Callable[[], None], rounds: int) -> Ratio:
  """Runs both `rounds` times in turn, each going first every other time.

  A ratio is taken within each round, so that a machine whose speed drifts slows both.
  The first round is not counted.
  """
  seconds = np.empty((rounds + 1, 2))
  for i in range(rounds + 1):
    order = ((0, ours), (1, peer)) if i % 2 else ((1, peer), (0, ours))
    for which, run in order:
      start = time.perf_counter()
      run()
      seconds[i, which] = time.perf_counter() - start
  counted = seconds[1:]
  low, ratio, high = np.quantile(counted[:, 0] / counted[:, 1], [0.25, 0.5, 0.75])
  our_median, peer_median = np.median(counted, axis=0)
  return Ratio(name, our_median, peer_median, ratio, low, high)
