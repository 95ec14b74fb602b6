"""A peer's side of the protocol that scripts/bench/_peers.py describes; standard library alone."""

import sys
import time
from collections.abc import Callable


def serve(about: str, step: Callable[[], object], finish: Callable[[], object], steps: int) -> None:
  """Says that it is ready, then answers each line `run` with the seconds a step of one round.

  Args:
    about: what it runs on, in one line.
    step: one step.
    finish: waits until all steps are done.
    steps: how many a round has.

  Raises:
    ValueError: a line is not `run`.
  """
  answers, sys.stdout = sys.stdout, sys.stderr
  print(f"ready {about}", file=answers, flush=True)
  for line in sys.stdin:
    if line.strip() != "run":
      raise ValueError(f"a line must be 'run', got {line.strip()!r}")
    start = time.perf_counter()
    for _ in range(steps):
      step()
    finish()
    print((time.perf_counter() - start) / steps, file=answers, flush=True)
