"""StableMax cross-entropies and their gradients, of logits small and large.

From github.com/LucasPrietoAl/grokking-at-the-edge-of-numerical-stability, commit
0cc9e8dc62ce, utils.py.
"""

import sys
from unittest import mock

import numpy as np
import torch
from _official import prepare, save

SIZE, CLASSES = 8, 5


def main():
  prepare()
  sys.modules |= {"datasets": mock.MagicMock(), "models": mock.MagicMock()}
  from utils import stablemax_cross_entropy

  rng = np.random.default_rng(0)
  scale = 10.0 ** np.arange(SIZE)[:, None] / 100
  logits = torch.tensor(rng.normal(size=(SIZE, CLASSES)) * scale, requires_grad=True)
  labels = torch.tensor(rng.integers(CLASSES, size=SIZE))
  values = stablemax_cross_entropy(logits, labels, reduction="none")[:, 0]
  values.sum().backward()
  given = {"logits": logits.detach(), "labels": labels}
  save(__file__, {**given, "values": values.detach(), "gradient": logits.grad})


main()
