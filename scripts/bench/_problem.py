"""What the suites solve, in NumPy alone: peers from other environments solve the same."""

import numpy as np

BATCH, CLASSES, STEPS = 256, 10, 10
IMAGE = (8, 8, 1)
WIDTHS = (512, 512)
"""Hidden layers of the MLP: wide enough that its matrix products dominate a step."""


def tokens(vocabulary: int, size: int, length: int) -> dict[str, np.ndarray]:
  """One batch of random sequences, each token of which is the label of the one before."""
  rng = np.random.default_rng(0)
  text = rng.integers(vocabulary, size=(size, length + 1)).astype(np.int32)
  return {"inputs": text[:, :-1], "labels": text[:, 1:], "mask": np.ones(size, np.float32)}


def batch(size: int = BATCH) -> dict[str, np.ndarray]:
  """One batch of random images and labels."""
  rng = np.random.default_rng(0)
  return {
    "inputs": rng.normal(size=(size, *IMAGE)).astype(np.float32),
    "labels": rng.integers(CLASSES, size=size).astype(np.int32),
    "mask": np.ones(size, np.float32),
  }
