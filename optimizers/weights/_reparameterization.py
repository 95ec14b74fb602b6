"""The record that every reparameterisation is."""

from collections.abc import Callable
from typing import Any, NamedTuple


class Reparameterization(NamedTuple):
  """Other coordinates for parameters: which to train, and the parameters they stand for.

  The functions take and give trees, and keep dtypes. What has fewer than two axes (biases,
  scales of normalisation layers) stands for itself.

  Attributes:
    init: `init(params) -> raw`, coordinates that stand for `params`.
    weights: `weights(raw) -> params`, differentiable.
    codes: `codes(raw)`, for each kernel the numbers of the levels that its weights are rounded
      to, int32, in a tuple; `None` where there are no levels.
  """

  init: Callable[[Any], Any]
  weights: Callable[[Any], Any]
  codes: Callable[[Any], tuple[Any, ...]] | None = None
