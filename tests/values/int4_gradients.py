"""Training with gradients of four bits by the official code.

From https://github.com/cvlab-yonsei/LBT at commit 84ab71a: its convolutions (models/modules.py)
and the update of their intervals (train.py), on weights and activations in full precision:
`python tests/values/int4_gradients.py CHECKOUT`. Gradients are rounded to the nearest level,
as `quantize` of train.py does, by noise of zero.
"""

import itertools
import sys
from unittest import mock

import torch
from _official import prepare, save

prepare()
STUBS = (
  *("matplotlib", "matplotlib.pyplot", "skimage", "skimage.io", "tensorboardX"),
  *("losses", "optimizers", "schedulers", "evaluators", "utils", "utils.config"),
  *("utils.checkpoint", "torchvision", "torch.utils.data.sampler"),
)
sys.modules |= {name: mock.MagicMock() for name in STUBS}
import train  # noqa: E402  (the checkout is on the path now)
from models.modules import DSQConv_a  # noqa: E402

STEPS, RATE, MOMENTUM = 40, 0.7, 0.9
EXAMPLES, SIDE, CHANNELS = 6, 6, (2, 4, 3)


class Network(torch.nn.Module):
  """Two convolutions; neither its weights nor its activations are rounded."""

  def __init__(self):
    super().__init__()
    sizes = itertools.pairwise(CHANNELS)
    self.convs = torch.nn.ModuleList(DSQConv_a(n, m, 3, padding=1, bias=False) for n, m in sizes)
    for conv in self.convs:
      conv.quant_w = conv.quan_input = False

  def forward(self, x):
    return self.convs[1](torch.relu(self.convs[0](x)))


def kernels(network):
  each = (conv.weight.detach().permute(2, 3, 1, 0).clone() for conv in network.convs)
  return dict(zip(("first", "second"), each, strict=True))


def main():
  torch.manual_seed(0)
  network = Network().train()
  torch.Tensor.uniform_ = lambda tensor, low, high: tensor.zero_()
  inputs = torch.randn(EXAMPLES, CHANNELS[0], SIDE, SIDE)
  targets = 3 * torch.randn(EXAMPLES, CHANNELS[-1], SIDE, SIDE) ** 3
  optimizer = torch.optim.SGD([c.weight for c in network.convs], lr=RATE, momentum=MOMENTUM)
  start, gammas, values = kernels(network), [], []
  for _ in range(STEPS):
    loss = torch.nn.functional.smooth_l1_loss(network(inputs), targets)
    optimizer.zero_grad()
    loss.backward()
    if not train.init:
      optimizer.step()
    train.update_interval(network, 0, 0)
    train.init = False
    gammas.append([conv.clip_ratio.item() for conv in network.convs])
    values.append(loss.item())

  # The rounding itself, of one gradient by several intervals and numbers of bits.
  gradient = torch.randn(40)
  cases = [(bits, gamma) for bits in (2, 4, 8) for gamma in (0.05, 0.3, 1.0)]
  rounded = [
    {"bits": bits, "gamma": gamma, "rounded": train.quantize(gradient, bits, gamma)}
    for bits, gamma in cases
  ]
  values = {
    "learning_rate": RATE,
    "momentum": MOMENTUM,
    "inputs": inputs.permute(0, 2, 3, 1),
    "targets": targets.permute(0, 2, 3, 1),
    "start": start,
    "losses": values,
    "gammas": gammas,
    "end": kernels(network),
    "gradient": gradient,
    "rounded": rounded,
  }
  save(__file__, values)


main()
