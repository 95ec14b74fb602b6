"""What the scripts share that run the code of EFCP, on a CPU and in float64.

From github.com/IST-DASLab/EFCP, commit a33a3a5725fb. CHECKOUT is a clone of it. What only logs is
replaced by nothing, its CUDA kernels by the loops over the same recursion that stand beside the
calls of them, and the LU decomposition without pivoting, which PyTorch has on GPUs alone, by its
definition.
"""

import sys
from importlib.machinery import ModuleSpec
from unittest import mock

import numpy as np
import torch
from _official import prepare

STEPS, SEED = 30, 285
SHAPES = {"bias": (3,), "even": (3, 4), "kernel": (5, 13)}
LOGGING = (
  *("gpustat", "line_profiler", "tqdm", "wandb", "yaml"),
  *("helpers.mylogger", "helpers.layer_manipulation", "helpers.damp_scheduling"),
)


def prepare_efcp():
  """Makes the repository's modules importable."""
  prepare()
  torch.float = torch.float32 = torch.float64
  torch.lu = lambda a, pivot: (without_pivots(a),)
  torch.distributed.is_available = lambda: False
  sys.modules |= {name: mock.MagicMock(__spec__=ModuleSpec(name, None)) for name in LOGGING}


def without_pivots(a):
  """L and U of a = L U in one matrix."""
  a = a.clone()
  for i in range(len(a)):
    a[i + 1 :, i] /= a[i, i].clone()
    a[i + 1 :, i + 1 :] -= torch.outer(a[i + 1 :, i], a[i, i + 1 :])
  return a


def problem():
  """The start, and a gradient for each step: noise around a slow drift, of uneven sizes."""
  rng = np.random.default_rng(SEED)
  start = {name: rng.normal(size=shape).round(3) for name, shape in SHAPES.items()}
  scale = {name: np.exp(rng.normal(size=shape)) for name, shape in SHAPES.items()}
  gradients = [
    {n: (scale[n] * (rng.normal(size=SHAPES[n]) + np.cos(t / 9))).round(5) for n in SHAPES}
    for t in range(STEPS)
  ]
  return {"start": start, "gradients": gradients}


def points(make, given):
  """The parameters after each step of the optimizer that `make(params)` gives."""
  params = {name: torch.tensor(value, requires_grad=True) for name, value in given["start"].items()}
  optimizer = make(list(params.values()))
  after = []
  for gradient in given["gradients"]:
    for name, value in params.items():
      value.grad = torch.tensor(gradient[name])
    optimizer.step()
    after.append({name: value.detach().numpy().round(12) for name, value in params.items()})
  return after
