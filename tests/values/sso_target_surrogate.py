"""Twenty target-based updates of a small classifier, on mini-batches.

From github.com/WilderLavington/Target-Based-Surrogates-For-Stochastic-Optimization, commit
205dde6ab514, optimizers/sgd_fmdopt.py, with its own line search, whose steps don't grow.
"""

import numpy as np
import torch
from _official import prepare, save

STEPS, BATCH, FEATURES, HIDDEN, CLASSES = 20, 6, 4, 5, 3
ETA, INNER_STEPS = 0.05, 7


class Network(torch.nn.Module):
  """Two layers."""

  def __init__(self, start):
    super().__init__()
    for name, leaf in start.items():
      setattr(self, name, torch.nn.Parameter(torch.tensor(leaf)))

  def forward(self, inputs):
    return torch.tanh(inputs @ self.first + self.bias) @ self.second


def main():
  prepare()
  from optimizers.sgd_fmdopt import SGD_FMDOpt

  rng = np.random.default_rng(0)
  inputs = rng.normal(size=(STEPS, BATCH, FEATURES)).round(2)
  labels = np.argmax(inputs[..., :CLASSES] + rng.normal(size=(STEPS, BATCH, CLASSES)), axis=-1)
  shapes = {"first": (FEATURES, HIDDEN), "bias": (HIDDEN,), "second": (HIDDEN, CLASSES)}
  start = {name: rng.normal(size=shape).round(2) for name, shape in shapes.items()}
  network = Network(start)
  optimizer = SGD_FMDOpt(
    network.parameters(),
    m=INNER_STEPS,
    eta_schedule="stochastic",
    eta=ETA,
    surr_optim_args={"lr": 1.0, "n_batches_per_epoch": 1e18},
  )
  path = []
  for x, y in zip(map(torch.tensor, inputs), map(torch.tensor, labels), strict=True):
    optimizer.step(
      lambda call_backward, x=x, y=y: (torch.nn.functional.cross_entropy, x, y, network)
    )
    path.append({name: param.detach().clone() for name, param in network.named_parameters()})
  data = {"inputs": inputs, "labels": labels, "start": start}
  save(__file__, {"eta": ETA, "inner_steps": INNER_STEPS, **data, "params": path})


main()
