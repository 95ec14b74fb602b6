"""A small classifier with a normalisation layer, which scripts about perturbations train."""

import numpy as np
import torch

STEPS, SIZE, FEATURES, HIDDEN, CLASSES = 24, 8, 5, 6, 3


class Network(torch.nn.Module):
  """Linear layers around a LayerNorm and tanh; the parameters are drawn from `rng`."""

  def __init__(self, rng):
    super().__init__()
    self.embed = torch.nn.Linear(FEATURES, HIDDEN, bias=False)
    self.first = torch.nn.Linear(HIDDEN, HIDDEN)
    self.norm = torch.nn.LayerNorm(HIDDEN, eps=1e-6)
    self.second = torch.nn.Linear(HIDDEN, CLASSES)
    for param in self.parameters():
      param.data = torch.tensor(rng.normal(size=tuple(param.shape)))

  def forward(self, inputs):
    return self.second(torch.tanh(self.norm(self.first(self.embed(inputs)))))

  def tree(self):
    """The parameters by layer, under the names and in the layout of Flax."""
    layers = {}
    for name, param in self.named_parameters():
      layer, kind = name.split(".")
      value = param.detach().clone()
      if kind == "weight":
        kind, value = ("kernel", value.T) if value.ndim == 2 else ("scale", value)
      layers.setdefault(layer, {})[kind] = value
    return layers


def batches(rng):
  """Inputs `[STEPS, SIZE, FEATURES]` and labels `[STEPS, SIZE]`, a batch for each step."""
  inputs = rng.normal(size=(STEPS, SIZE, FEATURES)).round(2)
  return torch.tensor(inputs), torch.tensor(rng.integers(CLASSES, size=(STEPS, SIZE)))


def run(network, data, step):
  """Start, end and losses; `step(loss)` takes one step, `loss()` leaves gradients behind."""
  start, losses = network.tree(), []
  for inputs, labels in zip(*data, strict=True):

    def loss(inputs=inputs, labels=labels):
      value = torch.nn.functional.cross_entropy(network(inputs), labels)
      value.backward()
      return value.item()

    losses.append(step(loss))
  return {"start": start, "losses": losses, "end": network.tree()}


def minimized(minimizer, data, **options):
  """A run of an official `minimizer(optimizer, network, ...)` over SGD."""
  network = Network(np.random.default_rng(1))
  sgd = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
  made = minimizer(sgd, network, **options)

  def step(loss):
    value = loss()
    made.ascent_step()
    loss()
    made.descent_step()
    return value

  return {**options, **run(network, data, step)}
