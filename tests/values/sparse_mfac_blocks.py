"""Thirty steps of sparse M-FAC by its authors' library, which takes the largest of each block.

From github.com/IST-DASLab/ISTA-DASLab-Optimizers, commit 4c98e6e7d8a5,
ista_daslab_optimizers/sparse_mfac/, as it is, on the problem of `_efcp`. What its CUDA kernels
compute is written out here.
"""

import importlib
import sys
import types
from pathlib import Path

import torch
from _efcp import points, prepare_efcp, problem
from _official import save

BLOCK = 12
HYPER = {"m": 6, "k_init": 0.2, "lr": 0.03, "damp": 1e-2, "weight_decay": 0.1}


def main():
  prepare_efcp()
  package = types.ModuleType("ista_daslab_optimizers")
  package.__path__ = [str(Path(sys.argv[1], "ista_daslab_optimizers").resolve())]
  sys.modules |= {"ista_daslab_optimizers": package, "ista_daslab_cuda_tools": Tools}
  sys.modules |= {"ista_daslab_cuda_sparse_mfac": Kernels, "ista_daslab_cuda_dense_mfac": Kernels}
  folder = "ista_daslab_optimizers.sparse_mfac"
  importlib.import_module(f"{folder}.sparse_core_mfac_w_ef").USE_CUDA = False
  official = importlib.import_module(f"{folder}.sparse_mfac").SparseMFAC
  given = problem()
  found = points(lambda params: official(params, **HYPER, use_bf16=False), given)
  save(__file__, {**given, **HYPER, "block": BLOCK, "params": found})


class Tools:
  """ista_daslab_cuda_tools."""

  @staticmethod
  def get_sm_count():
    return 1

  @staticmethod
  def get_max_floats_for_shared_memory_per_thread_block():
    return BLOCK

  @staticmethod
  def copy_values(d, k, d_block, k_block, indices, given, out, direction):
    where = absolute(k, d_block, k_block, indices)
    if direction == 1:
      out.copy_(given[where])
    else:
      out[where] = given


class Kernels:
  """ista_daslab_cuda_sparse_mfac."""

  @staticmethod
  def SP(blocks, threads, version, d, rows, k, d_block, k_block, g, indices, values, out, bf16):
    for row in range(rows):
      out[row] = g[absolute(k, d_block, k_block, indices[row])] @ values[row]

  @staticmethod
  def LCG(blocks, threads, version, d, rows, k, d_block, k_block, c, indices, values, out, bf16):
    for row in range(rows):
      out[absolute(k, d_block, k_block, indices[row])] += c[row] * values[row]


def absolute(k, d_block, k_block, indices):
  """Positions in the vector, of positions in blocks."""
  return indices.long() + torch.arange(k) // k_block * d_block


main()
