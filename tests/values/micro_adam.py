"""Twenty-four steps of MicroAdam by the official class, and the bytes of what it keeps.

From github.com/IST-DASLab/ISTA-DASLab-Optimizers, commit 4c98e6e7d8a5,
ista_daslab_optimizers/micro_adam/micro_adam.py, run as it is on float32 parameters. Its CUDA
kernels (kernels/ in commit 6b6e4d91eb25) are transcribed here in float32, with what they round
to bfloat16 beside the window's values and the buckets' ranges left as it is, codes clipped to
0..15, and code 0 where a bucket's entries are all equal.
"""

import importlib
import sys
import types
from pathlib import Path

import numpy as np
import torch
from _official import prepare, save

STEPS, BLOCK = 24, 16
SHAPES = {"kernel": (5, 13), "bias": (3,), "even": (4, 8)}
ALPHAS = 0.0, 0.317
SEED = 16  # without ties, such as a zero in a bucket of opposite ends, which rounding errors break
HYPER = {"m": 4, "lr": 0.05, "quant_block_size": 8, "k_init": 0.1, "weight_decay": 0.1}


def main():
  prepare()
  torch.set_default_dtype(torch.float32)
  package = types.ModuleType("ista_daslab_optimizers")
  package.__path__ = [str(Path(sys.argv[1], "ista_daslab_optimizers").resolve())]
  sys.modules |= {"ista_daslab_optimizers": package, "ista_daslab_cuda_micro_adam": Kernels}
  sys.modules |= {"ista_daslab_cuda_tools": Tools, "wandb": Tools, "gpustat": Tools}
  official = importlib.import_module("ista_daslab_optimizers.micro_adam.micro_adam").MicroAdam

  rng = np.random.default_rng(SEED)
  start = {name: rng.normal(size=shape).round(3) for name, shape in SHAPES.items()}
  scale = {name: np.exp(rng.normal(size=shape)) for name, shape in SHAPES.items()}
  gradients = [
    {n: (scale[n] * rng.normal(size=SHAPES[n]) + 0.5).round(7) for n in SHAPES}
    for _ in range(STEPS)
  ]
  runs = [run(official, start, gradients, alpha) for alpha in ALPHAS]
  given = {**HYPER, "block": BLOCK, "start": start, "gradients": gradients}
  save(__file__, {**given, "runs": runs})


def run(official, start, gradients, alpha):
  """The parameters after each step."""
  params = {name: torch.tensor(value, dtype=torch.float32) for name, value in start.items()}
  optimizer = official(list(params.values()), alpha=alpha, **HYPER)
  after = []
  for gradient in gradients:
    for name, value in params.items():
      value.grad = torch.tensor(gradient[name], dtype=torch.float32)
    optimizer.step()
    after.append({n: value.double().numpy().round(8) for n, value in params.items()})
  kept = [optimizer.state[value] for value in params.values()]
  entries = {name: state["k"] for name, state in zip(params, kept, strict=True)}
  return {"alpha": alpha, "entries": entries, "params": after}


class Tools:
  """ista_daslab_cuda_tools; a block is half of what shared memory holds."""

  @staticmethod
  def get_sm_count():
    return 1

  @staticmethod
  def get_max_floats_for_shared_memory_per_thread_block():
    return 2 * BLOCK

  @staticmethod
  def copy_values(d, k, d_block, k_block, indices, dense, out, direction):
    assert direction == 1
    out.copy_(dense[absolute(k, d_block, k_block, indices)])

  @staticmethod
  def zerorize_block_components(dense, indices, d, k, d_block, k_block):
    dense[absolute(k, d_block, k_block, indices)] = 0


class Kernels:
  """ista_daslab_cuda_micro_adam."""

  @staticmethod
  def asymm_block_quant_inv(d, size, codes, low, high, x, alpha):
    pairs = torch.stack([codes >> 4, codes & 15], dim=1).reshape(-1)[:d]
    low, step = levels(d, size, low, high)
    x.add_(alpha * (pairs.float() * step + low))

  @staticmethod
  def asymm_block_quant(d, size, codes, low, high, x):
    low, step = levels(d, size, low, high)
    code = torch.where(step == 0, 0, (x - low) / torch.where(step == 0, 1, step))
    assert torch.all(torch.abs(code % 1 - 0.5) > 1e-4), "a tie: take another SEED"
    rounded = torch.floor(code + 0.5).clip(0, 15).to(torch.uint8)
    rounded = torch.nn.functional.pad(rounded, (0, d % 2))
    codes.copy_((rounded[0::2] << 4) | rounded[1::2])

  @staticmethod
  def compute_microadam_update(
    blocks, threads, carveout, t, b1, b2, eps, d_block, k_block, d, m, k, indices, values, out
  ):
    first, second = torch.zeros(d), torch.zeros(d)
    for row in range(min(t, m)):
      age = (t - 1 - row) % m
      where, value = absolute(k, d_block, k_block, indices[row]), values[row].float()
      first[where] += b1**age * value
      second[where] += b2**age * value * value
    mean, square = (1 - b1) / (1 - b1**t) * first, (1 - b2) / (1 - b2**t) * second
    out.copy_(mean / (torch.sqrt(square) + eps))


def levels(d, size, low, high):
  """Each entry's lowest level, and the distance between two."""
  bucket = torch.arange(d) // size
  low, high = low.float()[bucket], high.float()[bucket]
  return low, (high - low) / 15


def absolute(k, d_block, k_block, indices):
  """Positions in the tensor, of positions in blocks."""
  return indices.long() + torch.arange(k) // k_block * d_block


main()
