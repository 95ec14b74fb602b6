"""Twenty-five GAM steps, SGD with momentum and decay behind them, of a small classifier.

From github.com/xxgege/GAM, commit 694133d9df92, in float64, run by run:

- plain: with constant radii and the coefficients of its main script;
- adaptive: with `adaptive`, and radii that its scheduler lowers;
- paper: with the paper's h_- = beta g0 + (1 - beta) g2. The code has g0 + c g2, with
  c = (1 - beta) / beta its beta-th part, which counts as much with beta times gamma.
"""

import sys
from types import SimpleNamespace

import numpy as np
import torch
from _official import prepare, save

STEPS, LEARNING_RATE, MOMENTUM, DECAY = 25, 0.2, 0.9, 5e-4
SIZE, FEATURES, HIDDEN, CLASSES = 12, 5, 6, 3
ALPHA, BETA, GAMMA = 0.6, 0.4, 0.3
RHO, RHO_PRIME = (0.2, 0.1), (0.05, 0.02)


class Classifier(torch.nn.Module):
  def __init__(self, params):
    super().__init__()
    self.tensors = torch.nn.ParameterDict(
      {name: torch.nn.Parameter(param.clone()) for name, param in params.items()}
    )

  def forward(self, inputs):
    hidden = torch.tanh(inputs @ self.tensors["first"] + self.tensors["bias"])
    return hidden @ self.tensors["second"]


def run(start, inputs, labels, *, scheduled, adaptive, c, gamma):
  """Losses, and the parameters at the end."""
  from gam.gam import GAM
  from gam.util import LinearScheduler

  def radius(highest, lowest):
    return LinearScheduler(STEPS, highest, lowest if scheduled else highest)

  model = Classifier(start)
  sgd = torch.optim.SGD(model.parameters(), LEARNING_RATE, MOMENTUM, weight_decay=DECAY)
  coefficients = {"grad_beta_1": ALPHA, "grad_beta_2": c, "grad_beta_3": 1 - ALPHA}
  optimizer = GAM(
    model.parameters(),
    sgd,
    model,
    grad_rho_scheduler=radius(*RHO_PRIME),
    grad_norm_rho_scheduler=radius(*RHO),
    adaptive=adaptive,
    args=SimpleNamespace(grad_gamma=gamma, **coefficients),
  )
  losses = []
  for _ in range(STEPS):
    optimizer.set_closure(torch.nn.functional.cross_entropy, inputs, labels)
    losses.append(optimizer.step()[1].item())
    optimizer.update_rho_t()
  return {"losses": losses, "end": {name: p.detach() for name, p in model.tensors.items()}}


def main():
  sys.path.pop(0)  # this file is called like the official package
  prepare()
  rng = np.random.default_rng(0)
  inputs = torch.tensor(rng.normal(size=(SIZE, FEATURES)))
  labels = torch.tensor(rng.integers(CLASSES, size=SIZE))
  shapes = {"first": (FEATURES, HIDDEN), "bias": (HIDDEN,), "second": (HIDDEN, CLASSES)}
  start = {name: torch.tensor(rng.normal(size=shape)) for name, shape in shapes.items()}
  data = start, inputs, labels
  runs = {
    "plain": run(*data, scheduled=False, adaptive=False, c=1 - BETA, gamma=GAMMA),
    "adaptive": run(*data, scheduled=True, adaptive=True, c=1 - BETA, gamma=GAMMA),
    "paper": run(*data, scheduled=False, adaptive=False, c=(1 - BETA) / BETA, gamma=BETA * GAMMA),
  }
  hyper = {"learning_rate": LEARNING_RATE, "momentum": MOMENTUM, "decay": DECAY}
  hyper |= {"alpha": ALPHA, "beta": BETA, "gamma": GAMMA, "rho": RHO, "rho_prime": RHO_PRIME}
  save(__file__, {**hyper, "inputs": inputs, "labels": labels, "start": start, **runs})


main()
