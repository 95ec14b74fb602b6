"""MaxSup and label smoothing, values and gradients with respect to the logits.

MaxSup from github.com/ZhouYuxuanYX/Maximum-Suppression-Regularization, commit 5b7c0db7b845,
Conv/ffcv/losses.py; label smoothing from PyTorch.
"""

import numpy as np
import torch
from _official import prepare, save

ALPHA = 0.15


def main():
  prepare("Conv/ffcv")
  from losses import MaxSuppression

  official = MaxSuppression(begin_lambda=ALPHA, end_lambda=ALPHA, epochs=1)
  rng = np.random.default_rng(0)
  logits = rng.normal(size=(6, 4)).round(3) * 3
  logits[5] = [1.0, 2.0, 2.0, -1.0]  # a tie
  labels = np.array([0, 1, 2, 3, 0, 1])
  correct = logits[:5].argmax(axis=1)
  cases = {
    "maxsup": with_gradient(official, logits, labels),
    "maxsup_correct": with_gradient(official, logits[:5], correct),
    "label_smoothing_correct": with_gradient(
      torch.nn.CrossEntropyLoss(label_smoothing=ALPHA), logits[:5], correct
    ),
  }
  save(__file__, {"alpha": ALPHA, **cases})


def with_gradient(loss, logits, labels):
  logits = torch.tensor(logits, requires_grad=True)
  value = loss(logits, torch.tensor(labels))
  value.backward()
  return {
    "logits": logits.detach(),
    "labels": torch.tensor(labels),
    "value": value.item(),
    "gradient": logits.grad,
  }


main()
