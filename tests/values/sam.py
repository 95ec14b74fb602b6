"""Twenty-five SAM steps, SGD with momentum behind them, of a small classifier.

From the package pytorch_optimizer, in float64. Run as `python tests/values/sam.py`, in an
environment made from requirements-oracles.txt.
"""

import numpy as np
import torch
from _official import save
from pytorch_optimizer import SAM

STEPS, RHO, LEARNING_RATE, MOMENTUM = 25, 0.1, 0.2, 0.9
SIZE, FEATURES, HIDDEN, CLASSES = 12, 5, 6, 3


def main():
  torch.set_default_dtype(torch.float64)
  rng = np.random.default_rng(0)
  inputs = torch.tensor(rng.normal(size=(SIZE, FEATURES)))
  labels = torch.tensor(rng.integers(CLASSES, size=SIZE))
  shapes = {"first": (FEATURES, HIDDEN), "bias": (HIDDEN,), "second": (HIDDEN, CLASSES)}
  params = {
    name: torch.tensor(rng.normal(size=shape), requires_grad=True) for name, shape in shapes.items()
  }
  start = {name: param.detach().clone() for name, param in params.items()}
  optimizer = SAM(params.values(), torch.optim.SGD, rho=RHO, lr=LEARNING_RATE, momentum=MOMENTUM)

  def closure():
    optimizer.zero_grad()
    hidden = torch.tanh(inputs @ params["first"] + params["bias"])
    loss = torch.nn.functional.cross_entropy(hidden @ params["second"], labels)
    loss.backward()
    return loss

  losses = []
  for _ in range(STEPS):
    losses.append(closure().item())
    optimizer.step(closure)
  hyper = {"rho": RHO, "learning_rate": LEARNING_RATE, "momentum": MOMENTUM}
  data = {"inputs": inputs, "labels": labels}
  end = {name: param.detach() for name, param in params.items()}
  save(__file__, {**hyper, **data, "start": start, "losses": losses, "end": end})


main()
