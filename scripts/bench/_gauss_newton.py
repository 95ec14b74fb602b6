"""What `second_order` and its peer solve by Gauss-Newton, in NumPy alone."""

import itertools

import numpy as np

LEARNING_RATE, DAMPING, STEPS = 0.5, 1.0, 3
WIDTHS = (64, 128, 128)
"""Inputs and hidden layers of a perceptron with tanh."""


def batch(loss: str, size: int) -> dict[str, np.ndarray]:
  """Inputs, and targets `[size, 1]` or one-hot labels `[size, 10]`."""
  rng = np.random.default_rng(0)
  inputs = rng.normal(size=(size, WIDTHS[0])).astype(np.float32)
  if loss == "squared_error":
    return {"inputs": inputs, "targets": np.sin(inputs.sum(axis=1, keepdims=True))}
  labels = np.eye(10, dtype=np.float32)[rng.integers(10, size=size)]
  return {"inputs": inputs, "targets": labels}


def weights(outputs: int) -> list[tuple[np.ndarray, np.ndarray]]:
  """Kernels and biases of the layers."""
  rng = np.random.default_rng(1)
  sizes = (*WIDTHS, outputs)
  return [
    (
      (rng.normal(size=(a, b)) / np.sqrt(a)).astype(np.float32),
      np.zeros(b, np.float32),
    )
    for a, b in itertools.pairwise(sizes)
  ]
