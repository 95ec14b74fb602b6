"""The record that every reparameterisation is."""

from collections.abc import Callable
from typing import Any, NamedTuple


class Reparameterization(NamedTuple):
  """Other coordinates for parameters: which to train, and the parameters they stand for.

  Both functions take and give trees, and keep dtypes. What has fewer than two axes (biases,
  scales of normalisation layers) stands for itself.

  Attributes:
    init: `init(params) -> raw`, coordinates that stand for `params`.
    weights: `weights(raw) -> params`, differentiable.
  """

  init: Callable[[Any], Any]
  weights: Callable[[Any], Any]
