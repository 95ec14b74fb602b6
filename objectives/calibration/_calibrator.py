"""The record that every online calibrator is."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax


class OnlineCalibrator(NamedTuple):
  """Functions that follow a stream of scores, such as a model's absolute residuals.

  All are pure, so that a stream is a `jax.lax.scan` and many streams are a `jax.vmap`.

  Attributes:
    init: `init() -> state`.
    predict: `predict(state) -> radius`, the bound that the coming score is to lie under, before
      it is known.
    update: `update(state, score) -> state`. A score that is not finite is left out.
  """

  init: Callable[[], Any]
  predict: Callable[[Any], jax.Array]
  update: Callable[[Any, jax.typing.ArrayLike], Any]
