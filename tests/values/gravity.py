"""Thirty steps of Gravity on a small classifier, from the velocities that it drew.

From github.com/dariush-bahrami/gravity.optimizer, commit 9c1206875209,
implementations/gravity_optimizer_pytorch.py.
"""

import numpy as np
import torch
from _official import prepare, save

STEPS, SIZE, FEATURES, HIDDEN, CLASSES = 30, 12, 5, 6, 3
HYPER = {"lr": 0.1, "alpha": 0.01, "beta": 0.9}


def main():
  prepare("implementations")
  from gravity_optimizer_pytorch import Gravity

  torch.manual_seed(0)
  rng = np.random.default_rng(0)
  inputs = torch.tensor(rng.normal(size=(SIZE, FEATURES)))
  labels = torch.tensor(rng.integers(CLASSES, size=SIZE))
  shapes = {"first": (FEATURES, HIDDEN), "bias": (HIDDEN,), "second": (HIDDEN, CLASSES)}
  params = {
    name: torch.tensor(rng.normal(size=shape), requires_grad=True) for name, shape in shapes.items()
  }
  optimizer = Gravity(params.values(), **HYPER)
  start = {name: value.detach().clone() for name, value in params.items()}
  velocity = {name: optimizer.state[value]["v"].clone() for name, value in params.items()}
  losses = []
  for _ in range(STEPS):
    optimizer.zero_grad()
    hidden = torch.tanh(inputs @ params["first"] + params["bias"])
    loss = torch.nn.functional.cross_entropy(hidden @ params["second"], labels)
    loss.backward()
    losses.append(loss.item())
    optimizer.step()
  given = {"inputs": inputs, "labels": labels, "start": start, "velocity": velocity}
  end = {name: value.detach() for name, value in params.items()}
  save(__file__, {**HYPER, **given, "losses": losses, "end": end})


main()
