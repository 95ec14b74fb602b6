"""Twenty-four steps of LIFT by the official class, the weights chosen anew every five.

From github.com/zihanghliu/LIFT, commit c4a679d8bda0, src/sparseAdam.py, run as it is on the CPU
(where it says "cuda") and without transformers, of which it asks for a version alone. By
`lift_sparse`, the name in its configurations, it takes the smallest entries; `largest` in the
name makes it take the largest, as its first release did.
"""

import sys
import types
from pathlib import Path

import numpy as np
import torch
from _official import prepare, save

STEPS = 24
SHAPES = {"wide": (6, 17), "tall": (13, 7), "small": (3, 4)}
HYPER = {"rank": 2, "filter_rank": 2, "update_proj_gap": 5}
LEARNING_RATE, BETAS, EPS = 0.05, (0.9, 0.95), 1e-3


def official():
  """The class SparseAdamW."""
  versions = types.ModuleType("transformers.utils.versions")
  versions.require_version = lambda wanted: None
  sys.modules["transformers.utils.versions"] = versions
  for name in ("transformers", "transformers.utils"):
    sys.modules[name] = types.ModuleType(name)
  path = Path(sys.argv[1], "src", "sparseAdam.py")
  names = {}
  text = path.read_text(encoding="utf-8").replace('torch.device("cuda")', 'torch.device("cpu")')
  exec(compile(text, str(path), "exec"), names)
  return names["SparseAdamW"]


def main():
  prepare()
  rng = np.random.default_rng(0)
  start = {name: rng.normal(size=shape).round(3) for name, shape in SHAPES.items()}
  gradients = [
    {name: (rng.normal(size=shape) + 0.5).round(3) for name, shape in SHAPES.items()}
    for _ in range(STEPS)
  ]
  params = {name: torch.tensor(value) for name, value in start.items()}
  optimizer = official()(
    [{"params": list(params.values()), **HYPER}],
    lr=LEARNING_RATE,
    betas=BETAS,
    eps=EPS,
    no_deprecation_warning=True,
    mask_type="lift_sparse_largest",
  )
  after, chosen = [], []
  for gradient in gradients:
    # Those of the coming step: new ones are chosen at the end of the one before.
    masks = {name: optimizer.state[value]["mask"].flatten() for name, value in params.items()}
    chosen.append({name: torch.nonzero(mask).flatten() for name, mask in masks.items()})
    for name, value in params.items():
      value.grad = torch.tensor(gradient[name])
    optimizer.step()
    after.append({name: value.numpy().round(8) for name, value in params.items()})
  hyper = {**HYPER, "learning_rate": LEARNING_RATE, "betas": BETAS, "eps": EPS}
  given = {"start": start, "gradients": gradients}
  save(__file__, {**hyper, **given, "chosen": chosen, "params": after})


main()
