"""Five steps of ELR: losses, gradients with respect to the logits, and the memory.

From github.com/shengliu66/ELR, commit 934af53434a3, ELR/model/loss.py.
"""

import sys
import types

import numpy as np
import torch
from _official import prepare, save

NUM_EXAMPLES, NUM_CLASSES, BETA, LAM = 7, 3, 0.7, 3.0


def main():
  prepare("ELR")
  sys.modules["parse_config"] = types.SimpleNamespace(ConfigParser=Config)
  from model.loss import elr_loss

  official = elr_loss(num_examp=NUM_EXAMPLES, num_classes=NUM_CLASSES, beta=BETA)
  rng = np.random.default_rng(1)
  steps = [step(official, rng, scale) for scale in (1, 3, 1, 12, 2)]
  sizes = {"num_examples": NUM_EXAMPLES, "num_classes": NUM_CLASSES}
  save(__file__, {**sizes, "beta": BETA, "lam": LAM, "steps": steps})


def step(official, rng, scale):
  """One step; at a large `scale` some probabilities are clipped."""
  logits = torch.tensor(rng.normal(size=(4, NUM_CLASSES)) * scale, requires_grad=True)
  labels = torch.tensor(rng.integers(NUM_CLASSES, size=4))
  index = torch.tensor(rng.permutation(NUM_EXAMPLES)[:4])
  value = official(index, logits, labels)
  value.backward()
  return {
    "logits": logits.detach(),
    "labels": labels,
    "index": index,
    "value": value.item(),
    "gradient": logits.grad,
    "memory": official.target.clone(),
  }


class Config:
  """Stands for the repository's configuration file."""

  @staticmethod
  def get_instance():
    return {"train_loss": {"args": {"lambda": LAM}}}


main()
