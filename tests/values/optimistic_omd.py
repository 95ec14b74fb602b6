"""Decisions of optimistic online mirror descent, Euclidean and on the simplex, for 30 rounds.

From github.com/li-lf/PyNOL, commit d34750297650, pynol/learner/base.py, with losses that
change from round to round and step sizes that shrink.
"""

import numpy as np
from _official import prepare, save

ROUNDS, SIZE = 30, 5


def decisions(learner, matrix, targets):
  """What the learner played in each round against 0.5 |A x - b_t|^2."""
  from pynol.environment.environment import Environment

  played = []
  for target in targets:
    environment = Environment(
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
  unbounded = Ball(SIZE, radius=1e9)
  learners = {
    "euclidean": OptimisticOGD(unbounded, steps, "last_grad", prior=start),
    "entropy": OptimisticHedge(Simplex(SIZE), steps, "last_grad", prior=start),
  }
  played = {name: decisions(learner, matrix, targets) for name, learner in learners.items()}
  save(__file__, {"matrix": matrix, "targets": targets, "steps": steps, "start": start, **played})


main()
