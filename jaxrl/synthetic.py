"""Data sets made by formula: each is a pure function of its arguments and the seed.

`data.load` and the command line know them by name, with their defaults. Where a function
takes `num_examples`, three fifths are for training, a fifth each for validation and test.
"""

import numpy as np

from . import check
from .data import Batch, Dataset


def two_moons(num_examples: int = 1000, *, noise: float = 0.2, seed: int = 0) -> Dataset:
  """Two half circles that reach into each other, one a class.

  ```
  class 0: (cos t, sin t)      class 1: (1 - cos t, 1/2 - sin t)      t ~ U[0, pi]
  ```

  Args:
    num_examples: in all, half of them in each class.
    noise: deviation of the Gaussian added to `inputs [2]`.
    seed: of everything random.

  Returns:
    A Dataset with `inputs` and `labels`.

  Example:
    >>> two_moons(100).splits["train"]["inputs"].shape
    (60, 2)
  """
  rng = _generator(num_examples, noise, seed)
  labels = np.arange(num_examples) % 2
  angle = np.pi * rng.random(num_examples)
  upper = np.stack([np.cos(angle), np.sin(angle)], axis=1)
  inputs = np.where(labels[:, None] == 0, upper, np.array([[1.0, 0.5]]) - upper)
  inputs += noise * rng.normal(size=inputs.shape)
  return _shuffled("two_moons", {"inputs": inputs, "labels": labels}, rng, num_classes=2)


def spirals(
  num_examples: int = 1500,
  *,
  num_classes: int = 3,
  turns: float = 1.0,
  noise: float = 0.02,
  seed: int = 0,
) -> Dataset:
  """Spiral arms around the origin, one a class.

  ```
  (r cos a, r sin a),    a = 2 pi (turns r + class / num_classes),    r ~ U[0, 1]
  ```

  Args:
    num_examples: in all, equally many in each class.
    num_classes: number of arms.
    turns: how often an arm winds around the origin.
    noise: deviation of the Gaussian added to `inputs [2]`.
    seed: of everything random.

  Returns:
    A Dataset with `inputs` and `labels`.

  Example:
    >>> spirals(100, num_classes=5).num_classes
    5
  """
  check.whole("num_classes", num_classes, 2)
  rng = _generator(num_examples, noise, seed)
  labels = np.arange(num_examples) % num_classes
  radius = rng.random(num_examples)
  angle = 2 * np.pi * (turns * radius + labels / num_classes)
  inputs = radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
  inputs += noise * rng.normal(size=inputs.shape)
  return _shuffled("spirals", {"inputs": inputs, "labels": labels}, rng, num_classes=num_classes)


def modular_arithmetic(modulus: int = 97, *, train_share: float = 0.5, seed: int = 0) -> Dataset:
  """All sums `a + b mod p`, on which networks generalise long after they have memorised.

  `inputs [2, p]` are the one-hot vectors of a and b, so that any model takes them; their
  argmax over the last axis are the tokens. `labels` are the sums. What is not for training
  is halved into validation and test.

  Args:
    modulus: p, the number of classes; there are `p^2` examples.
    train_share: of the examples, for training.
    seed: of the split.

  Returns:
    A Dataset with `inputs` and `labels`.

  References:
    A. Power, Y. Burda, H. Edwards, I. Babuschkin, V. Misra. Grokking: generalization beyond
    overfitting on small algorithmic datasets. 2022, arXiv 2201.02177 (section 2).

  Example:
    >>> train = modular_arithmetic(5).splits["train"]
    >>> a, b = train["inputs"].argmax(axis=-1).T
    >>> bool((train["labels"] == (a + b) % 5).all())
    True
  """
  check.whole("modulus", modulus, 3)
  check.whole("seed", seed, 0)
  check.between("train_share", train_share, 0.1, 0.9)
  order = np.random.default_rng(seed).permutation(modulus**2)
  a, b = np.divmod(order, modulus)
  arrays = {
    "inputs": np.eye(modulus)[np.stack([a, b], axis=1)],
    "labels": (a + b) % modulus,
  }
  train = round(train_share * modulus**2)
  ends = train, train + (modulus**2 - train) // 2
  return _dataset("modular_arithmetic", arrays, ends, num_classes=modulus)


def sparse_regression(
  num_examples: int = 500,
  *,
  num_features: int = 100,
  num_nonzero: int = 5,
  noise: float = 0.1,
  seed: int = 0,
) -> Dataset:
  """Linear regression in which few features matter.

  ```
  y = w . x + noise e,    x ~ N(0, I),    e ~ N(0, 1),
  w_j = +-1/sqrt(num_nonzero) for num_nonzero random features j, 0 for the others
  ```

  Args:
    num_examples: in all.
    num_features: of `inputs`.
    num_nonzero: features that matter.
    noise: deviation of the targets around the line.
    seed: of everything random.

  Returns:
    A Dataset with `inputs` and `targets [1]`.

  References:
    R. Tibshirani. Regression shrinkage and selection via the lasso. JRSS B 58(1), 1996.

  Example:
    >>> sparse_regression(100, num_features=20).splits["train"]["targets"].shape
    (60, 1)
  """
  check.whole("num_features", num_features, 1)
  check.whole("num_nonzero", num_nonzero, 1)
  check.between("num_nonzero", num_nonzero, 1, num_features)
  rng = _generator(num_examples, noise, seed)
  weights = np.zeros((num_features, 1))
  chosen = rng.permutation(num_features)[:num_nonzero]
  weights[chosen, 0] = rng.choice([-1.0, 1.0], num_nonzero) / np.sqrt(num_nonzero)
  inputs = rng.normal(size=(num_examples, num_features))
  targets = inputs @ weights + noise * rng.normal(size=(num_examples, 1))
  return _shuffled("sparse_regression", {"inputs": inputs, "targets": targets}, rng)


def heterogeneous_quadratics(
  num_examples: int = 2000,
  *,
  num_groups: int = 8,
  num_features: int = 10,
  heterogeneity: float = 1.0,
  noise: float = 0.0,
  seed: int = 0,
) -> Dataset:
  """Linear regression whose groups, such as workers, have curvatures and optima of their own.

  For a linear model the mean of `(y - w . x)^2 / 2` over group g is a quadratic in w, with
  Hessian `diag(s_g)^2` and minimiser `w_g` in the limit of many examples:

  ```
  y = w_g . x + noise e,    x ~ N(0, diag(s_g)^2),    w_g ~ N(w, heterogeneity^2 I),
  w ~ N(0, I),    log10 s_g ~ U[-heterogeneity / 2, heterogeneity / 2]
  ```

  Heterogeneity 0 makes all groups alike.

  Args:
    num_examples: in all, equally many in each group.
    num_groups: number of quadratics.
    num_features: of `inputs`.
    heterogeneity: how much the groups differ.
    noise: deviation of the targets around the line.
    seed: of everything random.

  Returns:
    A Dataset with `inputs`, `targets [1]` and `group`.

  Example:
    >>> heterogeneous_quadratics(100).num_groups
    8
  """
  check.whole("num_groups", num_groups, 1)
  check.whole("num_features", num_features, 1)
  check.at_least("heterogeneity", heterogeneity, 0)
  rng = _generator(num_examples, noise, seed)
  shape = num_groups, num_features
  scales = 10 ** (heterogeneity * rng.uniform(-0.5, 0.5, size=shape))
  optima = rng.normal(size=(1, num_features)) + heterogeneity * rng.normal(size=shape)
  group = np.arange(num_examples) % num_groups
  inputs = scales[group] * rng.normal(size=(num_examples, num_features))
  targets = (inputs * optima[group]).sum(axis=1, keepdims=True)
  targets += noise * rng.normal(size=targets.shape)
  arrays = {"inputs": inputs, "targets": targets, "group": group}
  return _shuffled("heterogeneous_quadratics", arrays, rng, num_groups=num_groups)


def _generator(num_examples: int, noise: float, seed: int) -> np.random.Generator:
  check.whole("num_examples", num_examples, 5)
  check.at_least("noise", noise, 0)
  check.whole("seed", seed, 0)
  return np.random.default_rng(seed)


def _shuffled(
  name: str,
  arrays: Batch,
  rng: np.random.Generator,
  num_classes: int | None = None,
  num_groups: int | None = None,
) -> Dataset:
  size = len(arrays["inputs"])
  order = rng.permutation(size)
  ends = size - 2 * (size // 5), size - size // 5
  shuffled = {column: values[order] for column, values in arrays.items()}
  return _dataset(name, shuffled, ends, num_classes, num_groups)


def _dataset(
  name: str,
  arrays: Batch,
  ends: tuple[int, int],
  num_classes: int | None = None,
  num_groups: int | None = None,
) -> Dataset:
  """The rows before the first of `ends` for training, before the second for validation."""
  columns = {
    column: values.astype(np.float32 if values.dtype.kind == "f" else np.int32)
    for column, values in arrays.items()
  }
  first, second = ends
  parts = {"train": slice(first), "validation": slice(first, second), "test": slice(second, None)}
  splits = {
    split: {column: values[rows] for column, values in columns.items()}
    for split, rows in parts.items()
  }
  return Dataset(name=name, splits=splits, num_classes=num_classes, num_groups=num_groups)
