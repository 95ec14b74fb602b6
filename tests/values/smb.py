"""Thirty steps of SMB and of SMBi on mini-batches of a small classifier.

From github.com/sibirbil/SMB, commit 17fb8ba4f440, source/smbsolve/smb.py. Every epoch of five
steps fits the learning rate.
"""

import numpy as np
import torch
from _official import prepare, save

STEPS, BATCH, FEATURES, HIDDEN, CLASSES = 30, 8, 4, 5, 3
SETTINGS = {"lr": 4.0, "eta": 0.9, "c": 0.2, "gamma": 0.5, "beta": 0.5, "lr_max": 9.0}
EPOCH = 5


def run(inputs, labels, start, independent):
  """The learning rate of each step, and the parameters after it."""
  from smbsolve.smb import SMB

  params = {name: torch.tensor(leaf, requires_grad=True) for name, leaf in start.items()}
  optimizer = SMB(
    params.values(),
    independent_batch=independent,
    autoschedule=True,
    n_batches_per_epoch=EPOCH,
    **SETTINGS,
  )
  seen = {"params": [], "rates": []}
  for x, y in zip(torch.tensor(inputs), torch.tensor(labels), strict=True):

    def closure(x=x, y=y):
      optimizer.zero_grad()
      hidden = torch.tanh(x @ params["first"] + params["bias"])
      return torch.nn.functional.cross_entropy(hidden @ params["second"], y)

    seen["rates"].append(optimizer.param_groups[0]["lr"])
    optimizer.step(closure)
    seen["params"].append({name: p.detach().clone() for name, p in params.items()})
  return seen


def main():
  prepare("source")
  rng = np.random.default_rng(0)
  inputs = rng.normal(size=(STEPS, BATCH, FEATURES)).round(2)
  labels = np.argmax(inputs[..., :CLASSES] + rng.normal(size=(STEPS, BATCH, CLASSES)), axis=-1)
  shapes = {"first": (FEATURES, HIDDEN), "bias": (HIDDEN,), "second": (HIDDEN, CLASSES)}
  start = {name: rng.normal(size=shape).round(2) for name, shape in shapes.items()}
  runs = {name: run(inputs, labels, start, name == "smbi") for name in ("smb", "smbi")}
  data = {"inputs": inputs, "labels": labels, "start": start}
  save(__file__, {"settings": SETTINGS, "epoch": EPOCH, **data, **runs})


main()
