"""Twenty-five steps of Booster, AdamW behind it, of a small classifier.

From github.com/git-disl/Booster, commit 6421918c58da, trainer.py: its training step is run on a
stand-in for the transformers Trainer, with batches of ordinary and of harmful examples.
"""

import contextlib
import sys
import types

import numpy as np
import torch
from _official import prepare, save

STEPS, LAM, ALPHA = 25, 5.0, 0.1
LEARNING_RATE, DECAY = 0.01, 0.1
ORDINARY, HARMFUL, FEATURES, HIDDEN, CLASSES = 6, 4, 5, 6, 3


class Classifier(torch.nn.Module):
  """A hidden layer of tanh."""

  def __init__(self, start):
    super().__init__()
    for name, value in start.items():
      setattr(self, name, torch.nn.Parameter(value.clone()))

  def forward(self, inputs):
    return torch.tanh(inputs @ self.first + self.bias) @ self.second


def trainer_of(official, harmful_batches):
  """The official trainer without what it inherits: only its own step is run."""
  trainer = object.__new__(official.BoosterAlignmentTrainer)
  trainer.args = types.SimpleNamespace(
    alpha=ALPHA, lamb=LAM, perturb_aware="False", gradient_accumulation_steps=1
  )
  trainer.use_apex, trainer.steps = False, 0
  trainer.accelerator = types.SimpleNamespace(backward=lambda loss: loss.backward())
  trainer.compute_loss_context_manager = contextlib.nullcontext
  trainer._prepare_inputs = lambda batch: batch
  trainer.sample_from_harmful = lambda: next(harmful_batches)
  trainer.compute_loss = lambda model, batch: torch.nn.functional.cross_entropy(
    model(batch[0]), batch[1]
  )
  return trainer


def batches(rng, size):
  inputs = torch.tensor(rng.normal(size=(STEPS, size, FEATURES)))
  return inputs, torch.tensor(rng.integers(CLASSES, size=(STEPS, size)))


def main():
  prepare()
  # What trainer.py imports besides, for other methods.
  sys.modules["utils"] = types.SimpleNamespace(
    prune_wanda_outlier=None, SupervisedDataset=None, prune_with_FI=None
  )
  import trainer as official

  rng = np.random.default_rng(0)
  shapes = {"first": (FEATURES, HIDDEN), "bias": (HIDDEN,), "second": (HIDDEN, CLASSES)}
  start = {name: torch.tensor(rng.normal(size=shape)) for name, shape in shapes.items()}
  ordinary, harmful = batches(rng, ORDINARY), batches(rng, HARMFUL)
  model = Classifier(start)
  optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=DECAY)
  trainer = trainer_of(official, zip(*harmful, strict=True))
  losses = []
  for batch in zip(*ordinary, strict=True):
    optimizer.zero_grad()
    losses.append(trainer.training_step(model, batch).item())
    optimizer.step()
  end = {name: param.detach() for name, param in model.named_parameters()}
  hyper = {"lam": LAM, "alpha": ALPHA, "learning_rate": LEARNING_RATE, "decay": DECAY}
  data = {
    "ordinary": {"inputs": ordinary[0], "labels": ordinary[1]},
    "harmful": {"inputs": harmful[0], "labels": harmful[1]},
  }
  save(__file__, {**hyper, **data, "start": start, "losses": losses, "end": end})


main()
