"""Decisions of the ensemble of optimistic gradient descents on a ball, for 30 rounds.

From github.com/li-lf/PyNOL, commit d34750297650, pynol/learner/models/dynamic/swordpp.py, with
the paper's pool of step sizes. The constants keep the learning rate of the weights at its upper
bound, where weighing greedily and lazily are the same.
"""

import numpy as np
from _official import prepare, save

ROUNDS, SIZE, RADIUS = 30, 5, 0.7
BOUND, SMOOTHNESS = 2.0, 0.4


def pool():
  """The step sizes of the paper."""
  diameter = 2 * RADIUS
  ratio = BOUND**2 * ROUNDS / (8 * SMOOTHNESS**2 * diameter**2)
  number = int(np.ceil(np.log2(ratio) / 2)) + 1
  smallest = np.sqrt(diameter**2 / (8 * BOUND**2 * ROUNDS))
  return np.minimum(1 / (8 * SMOOTHNESS), smallest * 2.0 ** np.arange(number))


def main():
  prepare()
  from pynol.environment.domain import Ball
  from pynol.environment.environment import Environment
  from pynol.learner.base import OptimisticOGD
  from pynol.learner.meta import OptimisticHedge, OptimisticLR
  from pynol.learner.models.model import Model
  from pynol.learner.schedule.schedule import Schedule
  from pynol.learner.schedule.ssp import SSP
  from pynol.learner.specification.optimism_base import LastGradOptimismBase
  from pynol.learner.specification.optimism_meta import InnerSwitchingOptimismMeta
  from pynol.learner.specification.surrogate_base import InnerSurrogateBase
  from pynol.learner.specification.surrogate_meta import InnerSwitchingSurrogateMeta

  rng = np.random.default_rng(0)
  targets = np.cumsum(rng.normal(size=(ROUNDS, SIZE)), axis=0) / 4
  start = np.linspace(0.1, 0.3, SIZE)
  ball, steps = Ball(SIZE, radius=RADIUS), pool()
  bases = [OptimisticOGD(ball, step, prior=start) for step in steps]
  rate = OptimisticLR(upper_bound=1 / (8 * (2 * RADIUS) ** 2 * SMOOTHNESS))
  meta = OptimisticHedge(prob=np.ones(len(steps)) / len(steps), lr=rate)
  penalty = {"penalty": 2 * SMOOTHNESS, "norm": 2, "order": 2}
  learner = Model(
    Schedule(SSP(bases)),
    meta,
    surrogate_base=InnerSurrogateBase(),
    optimism_base=LastGradOptimismBase(),
    surrogate_meta=InnerSwitchingSurrogateMeta(**penalty),
    optimism_meta=InnerSwitchingOptimismMeta(**penalty),
  )
  played, weights, rates = [], [], []
  for target in targets:
    environment = Environment(
      func=lambda x, b=target: SMOOTHNESS / 2 * np.sum((x - b) ** 2),
      grad_func=lambda x, b=target: SMOOTHNESS * (x - b),
    )
    played.append(learner.opt(environment)[0])
    weights.append(meta.prob.copy())
    rates.append(rate.lr)
  assert np.ptp(rates) == 0, rates
  data = {"targets": targets, "start": start, "steps": steps, "weights": np.array(weights)}
  constants = {"radius": RADIUS, "bound": BOUND, "smoothness": SMOOTHNESS}
  save(__file__, {**data, **constants, "played": np.array(played)})


main()
