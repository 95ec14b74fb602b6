"""Decisions of optimistic online mirror descent, Euclidean and on the simplex, for 30 rounds.

On the ball also with hints from elsewhere, and with none.

From github.com/li-lf/PyNOL, commit d34750297650, pynol/learner/base.py, with losses that
change from round to round and step sizes that shrink.
"""

import numpy as np
from _official import prepare, save

ROUNDS, SIZE = 30, 5


def decisions(learner, matrix, targets, hints):
  """What the learner played in each round against 0.5 |A x - b_t|^2."""
  from pynol.environment.environment import Environment

  played = []
  for target, hint in zip(targets, hints, strict=True):
    environment = Environment(
      optimism=hint,
      func=lambda x, b=target: 0.5 * np.sum((matrix @ x - b) ** 2),
      grad_func=lambda x, b=target: matrix.T @ (matrix @ x - b),
    )
    played.append(learner.opt(environment)[0])
  return np.array(played)


def main():
  prepare()
  from pynol.environment.domain import Ball, Simplex
  from pynol.learner.base import OptimisticHedge, OptimisticOGD

  rng = np.random.default_rng(0)
  matrix = rng.normal(size=(SIZE, SIZE))
  targets = np.cumsum(rng.normal(size=(ROUNDS, SIZE)), axis=0) / 2
  steps = 0.1 / np.sqrt(1 + np.arange(ROUNDS))
  start = np.linspace(1, 2, SIZE) / np.linspace(1, 2, SIZE).sum()
  hints = rng.normal(size=(ROUNDS, SIZE))
  unbounded, ball = Ball(SIZE, radius=1e9), Ball(SIZE, radius=0.7)
  learners = {
    "euclidean": OptimisticOGD(unbounded, steps, "last_grad", prior=start),
    "entropy": OptimisticHedge(Simplex(SIZE), steps, "last_grad", prior=start),
    "ball": OptimisticOGD(ball, steps, "last_grad", prior=start),
    "external": OptimisticOGD(ball, steps, "external", prior=start),
    "none": OptimisticOGD(ball, steps, None, prior=start),
  }
  hints[0] = 0  # ours has no hint of the first round
  data = {"matrix": matrix, "targets": targets, "hints": hints, "steps": steps, "start": start}
  played = {name: decisions(learner, matrix, targets, hints) for name, learner in learners.items()}
  save(__file__, {**data, **played})


main()
