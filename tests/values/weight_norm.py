"""Twenty-five steps of a small network whose layers have PyTorch's weight normalization.

SGD with momentum, in float64, on one batch. Kernels are written in the layout of Flax. Run as
`python tests/values/weight_norm.py`, in an environment made from requirements-oracles.txt.
"""

import torch
from _official import save
from torch.nn.utils.parametrizations import weight_norm

STEPS, LEARNING_RATE, MOMENTUM = 25, 0.2, 0.9
SIZE, SIDE, CHANNELS, HIDDEN, CLASSES = 8, 5, 2, 4, 3


class Network(torch.nn.Module):
  """A 3 x 3 convolution, the mean over its positions, and a linear layer."""

  def __init__(self):
    super().__init__()
    self.conv = torch.nn.Conv2d(CHANNELS, HIDDEN, 3)
    self.dense = torch.nn.Linear(HIDDEN, CLASSES)

  def forward(self, images):
    return self.dense(torch.tanh(self.conv(images)).mean(dim=(2, 3)))

  def tree(self):
    """Weights and biases, as the network sees them."""
    return {
      "conv": {"kernel": self.conv.weight.permute(2, 3, 1, 0), "bias": self.conv.bias},
      "dense": {"kernel": self.dense.weight.T, "bias": self.dense.bias},
    }


def coordinates(layer):
  """g and v of a layer, in the layout of Flax."""
  scale = layer.parametrizations.weight.original0
  direction = layer.parametrizations.weight.original1
  order = (2, 3, 1, 0) if direction.ndim == 4 else (1, 0)
  return {"scale": scale.permute(order), "direction": direction.permute(order)}


def detached(node):
  if isinstance(node, dict):
    return {name: detached(child) for name, child in node.items()}
  return node.detach().clone()


def main():
  torch.manual_seed(0)
  torch.set_default_dtype(torch.float64)
  network = Network()
  for parameter in network.parameters():
    parameter.data = torch.randn_like(parameter)
  start = detached(network.tree())
  images = torch.randn(SIZE, CHANNELS, SIDE, SIDE)
  labels = torch.randint(CLASSES, (SIZE,))
  for layer in (network.conv, network.dense):
    weight_norm(layer)
  optimizer = torch.optim.SGD(network.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM)
  losses = []
  for _ in range(STEPS):
    optimizer.zero_grad()
    loss = torch.nn.functional.cross_entropy(network(images), labels)
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
  hyper = {"learning_rate": LEARNING_RATE, "momentum": MOMENTUM}
  data = {"images": images.permute(0, 2, 3, 1), "labels": labels, "losses": losses}
  end = {"start": start, "end": detached(network.tree())}
  raw = {name: detached(coordinates(getattr(network, name))) for name in ("conv", "dense")}
  save(__file__, {**hyper, **data, **end, "raw": raw})


main()
