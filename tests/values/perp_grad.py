"""Thirty steps of perpGrad with SGD and with AdamW behind it, on a small classifier.

From github.com/LucasPrietoAl/grokking-at-the-edge-of-numerical-stability, commit
0cc9e8dc62ce, orthograd.py. The bias starts at zero, as layers have it.
"""

import numpy as np
import torch
from _official import prepare, save

STEPS, SIZE, FEATURES, HIDDEN, CLASSES = 30, 12, 5, 6, 3
BASES = {
  "sgd": (torch.optim.SGD, {"lr": 0.3, "momentum": 0.8}),
  "adamw": (torch.optim.AdamW, {"lr": 0.03, "betas": (0.9, 0.99), "weight_decay": 0.0}),
}


def main():
  prepare()
  from orthograd import OrthoGrad

  rng = np.random.default_rng(0)
  inputs = torch.tensor(rng.normal(size=(SIZE, FEATURES)))
  labels = torch.tensor(rng.integers(CLASSES, size=SIZE))
  start = {
    "first": torch.tensor(rng.normal(size=(FEATURES, HIDDEN))),
    "bias": torch.zeros(HIDDEN),
    "second": torch.tensor(rng.normal(size=(HIDDEN, CLASSES))),
  }
  runs = {name: run(OrthoGrad, inputs, labels, start, *base) for name, base in BASES.items()}
  save(__file__, {"inputs": inputs, "labels": labels, "start": start, "runs": runs})


def run(official, inputs, labels, start, base, hyper):
  params = {name: value.clone().requires_grad_() for name, value in start.items()}
  optimizer = official(params.values(), base, **hyper)
  losses = []
  for _ in range(STEPS):
    optimizer.zero_grad()
    hidden = torch.tanh(inputs @ params["first"] + params["bias"])
    loss = torch.nn.functional.cross_entropy(hidden @ params["second"], labels)
    loss.backward()
    losses.append(loss.item())
    optimizer.step()
  return {"losses": losses, "end": {name: value.detach() for name, value in params.items()}}


main()
