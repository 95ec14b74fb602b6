"""Runs of SAF and of MESA on a small classifier: ten epochs of three batches each.

From github.com/AngusDujw/SAF, commit 6e856004c59f, SAF_train.py, MESA_train.py and
timm/utils/model_ema.py.
"""

import importlib
import importlib.util
import sys
import types
from unittest import mock

import numpy as np
import torch
from _official import prepare, save

EPOCHS, SIZE, BATCH, FEATURES, HIDDEN, CLASSES = 10, 12, 4, 5, 6, 3
LEARNING_RATE, LAM, TEMPERATURE, START, END, LAG, DECAY = 0.5, 0.8, 2.0, 3, 8, 3, 0.8
LOSSES = []


def main():
  prepare()
  for name in ("yaml", "torchvision", "torchvision.utils", "torch.utils.tensorboard"):
    sys.modules[name] = mock.MagicMock()
  for name in ("", ".data", ".models", ".loss", ".optim", ".scheduler", ".utils"):
    sys.modules[f"timm{name}"] = Stub(f"timm{name}")
  torch.cuda.synchronize = lambda: None
  rng = np.random.default_rng(0)
  inputs = torch.tensor(rng.normal(size=(SIZE, FEATURES)))
  labels = torch.tensor(rng.integers(CLASSES, size=SIZE))
  order = torch.tensor(rng.permuted(np.tile(np.arange(SIZE), (EPOCHS, 1)), axis=1))
  start = {
    "first": torch.tensor(rng.normal(size=(FEATURES, HIDDEN))),
    "bias": torch.tensor(rng.normal(size=HIDDEN)),
    "second": torch.tensor(rng.normal(size=(HIDDEN, CLASSES))),
  }
  order = order.reshape(EPOCHS, -1, BATCH)
  data = {"inputs": inputs, "labels": labels, "order": order, "start": start}
  hyper = {"lam": LAM, "temperature": TEMPERATURE, "start_epoch": START, "end_epoch": END}
  runs = {name: run(name, data) for name in ("saf", "mesa")}
  given = {"learning_rate": LEARNING_RATE, "lag": LAG, "decay": DECAY, "hyper": hyper}
  save(__file__, {**data, **given, "runs": runs})


def run(name, data):
  official = importlib.import_module(f"{name.upper()}_train")
  model = Classifier(data["start"])
  optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
  if name == "saf":
    memory = {"train_logits": np.zeros((SIZE, LAG + 1, CLASSES), np.float32)}
  else:
    memory = {"model_ema": averages()(model, decay=DECAY)}
  LOSSES.clear()
  for epoch, batches in enumerate(data["order"]):
    loader = [(i, data["inputs"][i], data["labels"][i]) for i in batches]
    criterion = torch.nn.CrossEntropyLoss()
    official.train_one_epoch(epoch, model, loader, optimizer, criterion, arguments(), **memory)
  end = {name: param.detach() for name, param in model.named_parameters()}
  return {"losses": list(LOSSES), "end": end}


def averages():
  """The class that keeps MESA's averages of the weights."""
  spec = importlib.util.spec_from_file_location("ema", f"{sys.argv[1]}/timm/utils/model_ema.py")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.ModelEmaV2


def arguments():
  return types.SimpleNamespace(
    reinforce=LAM,
    temperature=TEMPERATURE,
    kl_start_epoch=START,
    kl_end_epoch=END,
    minus_epoch=LAG,
    mixup_off_epoch=0,
    prefetcher=False,
    channels_last=False,
    distributed=False,
    clip_grad=None,
    log_interval=10**6,
    local_rank=1,
  )


class Classifier(torch.nn.Module):
  def __init__(self, start):
    super().__init__()
    for name, value in start.items():
      setattr(self, name, torch.nn.Parameter(value.clone()))

  def forward(self, inputs):
    return torch.tanh(inputs @ self.first + self.bias) @ self.second


class Meter:
  """Stands for the repository's average; what comes with a count is a loss."""

  avg = 0.0

  def update(self, value, count=None):
    if count is not None:
      LOSSES.append(value)


class Stub(types.ModuleType):
  """A module that has every name."""

  __all__ = ("AverageMeter",)
  AverageMeter = Meter

  def __getattr__(self, name):
    if name == "__path__":
      raise AttributeError(name)
    return mock.MagicMock()


main()
