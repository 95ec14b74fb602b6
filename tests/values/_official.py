"""What scripts share that run other people's code, on a CPU and in float64.

Each is called as `python tests/values/<name>.py CHECKOUT`, in an environment made from
requirements-oracles.txt. CHECKOUT is a clone of the repository that the script names, at the
commit it names. No test runs these scripts.
"""

import json
import sys
from pathlib import Path

import torch


def prepare(folder: str = "") -> None:
  """Makes modules in `folder` of the checkout importable, and `.cuda()` stay on the CPU."""
  sys.path.insert(0, str(Path(sys.argv[1], folder).resolve()))
  torch.Tensor.cuda = lambda tensor, *args, **kwargs: tensor
  torch.set_default_dtype(torch.float64)


def save(script: str, values: object) -> None:
  """Writes `values`, tensors as lists, beside the script."""
  text = json.dumps(values, default=lambda tensor: tensor.tolist())
  Path(script).with_suffix(".json").write_text(text + "\n", encoding="utf-8")
