"""Thirty steps of low-rank M-FAC by the paper's code.

See `_efcp` for repository and commit; optimizers/lowrank/low_rank_optim.py, LowRankAggregateMFAC,
with one of its CUDA kernels written out here. The factors before the first step, which are noise
times the initial weights, are given as `right`.
"""

import sys
import types

import torch
from _efcp import points, prepare_efcp, problem
from _official import save

HYPER = {"lr": 0.01, "num_grads": 6, "damp": 1e-2, "rank": 1}


def main():
  prepare_efcp()
  torch.manual_seed(0)
  sys.modules["hinv_cuda"] = types.ModuleType("hinv_cuda")
  from optimizers.lowrank import low_rank_optim as module

  sys.modules["hinv_cuda"].hinv_setup = coefficients
  module.USE_CUDA = False
  given, first = problem(), {}

  def make(params):
    optimizer = module.LowRankAggregateMFAC(params, **HYPER)
    for name, compressor in zip(given["start"], optimizer.compressors[0], strict=True):
      if len(compressor.grad_shape) == 2:
        first[name] = compressor.q_memory.detach().numpy().copy()
    return optimizer

  found = points(make, given)
  save(__file__, {**given, **HYPER, "right": first, "params": found})


def coefficients(scaled, start):
  """hinv_setup: each row from those before it."""
  rows = start.clone()
  for i in range(1, len(rows)):
    rows[i, :i] = scaled[i, :i] @ rows[:i, :i]
  return rows


main()
