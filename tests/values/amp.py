"""Twenty-five steps of AMP, Nesterov SGD with weight decay behind it, of a small classifier.

From github.com/hiyouga/AMP-Regularizer, commit 87e689fa2a57, amp.py; gradients are clipped as
in its main.py. Two settings, in the second of which clipping and several ascent steps matter.
"""

import numpy as np
import torch
from _official import prepare, save

STEPS, LEARNING_RATE, MOMENTUM, DECAY = 25, 0.1, 0.9, 1e-4
SIZE, FEATURES, HIDDEN, CLASSES = 12, 5, 6, 3
SETTINGS = [
  {"epsilon": 0.1, "inner_lr": 1.0, "inner_iter": 1, "clip_norm": 50.0},
  {"epsilon": 0.4, "inner_lr": 0.7, "inner_iter": 3, "clip_norm": 0.5},
]


def train(AMP, start, inputs, labels, epsilon, inner_lr, inner_iter, clip_norm):
  params = {name: value.clone().requires_grad_() for name, value in start.items()}
  options = {"momentum": MOMENTUM, "weight_decay": DECAY, "nesterov": True}
  optimizer = AMP(params.values(), LEARNING_RATE, epsilon, inner_lr, inner_iter, **options)

  def closure():
    optimizer.zero_grad()
    outputs = torch.tanh(inputs @ params["first"] + params["bias"]) @ params["second"]
    loss = torch.nn.functional.cross_entropy(outputs, labels)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(params.values(), clip_norm)
    return outputs, loss

  losses = [optimizer.step(closure)[1].item() for _ in range(STEPS)]
  return {"losses": losses, "end": {name: param.detach() for name, param in params.items()}}


def main():
  prepare()
  from amp import AMP

  rng = np.random.default_rng(0)
  inputs = torch.tensor(rng.normal(size=(SIZE, FEATURES)))
  labels = torch.tensor(rng.integers(CLASSES, size=SIZE))
  shapes = {"first": (FEATURES, HIDDEN), "bias": (HIDDEN,), "second": (HIDDEN, CLASSES)}
  start = {name: torch.tensor(rng.normal(size=shape)) for name, shape in shapes.items()}
  runs = [
    {"setting": setting, **train(AMP, start, inputs, labels, **setting)} for setting in SETTINGS
  ]
  hyper = {"learning_rate": LEARNING_RATE, "momentum": MOMENTUM, "decay": DECAY}
  save(__file__, {**hyper, "inputs": inputs, "labels": labels, "start": start, "runs": runs})


main()
