"""Vectors of the diagnostics: trees of arrays in float32 (or wider), and random estimates.

Their algebra is `optimizers/_vectors.py`'s, which is methods' as well.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from optimizers import _vectors
from optimizers._vectors import (
  dot,
  hessian_product,
  moved,
  norm,
  normal,
  scaled,
  size,
  unit,
)

__all__ = [
  "Estimate",
  "Loss",
  "dot",
  "estimate",
  "hessian_product",
  "like",
  "moved",
  "norm",
  "normal",
  "scaled",
  "size",
  "unit",
  "wide",
]

Loss = Callable[[Any], jax.Array]


class Estimate(NamedTuple):
  """A mean over random draws, and its standard error (NaN with one draw)."""

  mean: jax.Array
  error: jax.Array


def estimate(draws: jax.Array) -> Estimate:
  """The mean of `draws [N]` and its standard error."""
  count = draws.shape[0]
  error = jnp.std(draws, ddof=1) / count**0.5 if count > 1 else jnp.full((), jnp.nan, draws.dtype)
  return Estimate(jnp.mean(draws), error)


def wide(params: Any) -> Any:
  """The parameters in float32 or wider; ValueError if there are none."""
  if size(params) == 0:
    raise ValueError(f"params must hold at least one number, got {params!r}")
  return _vectors.wide(params)


def like(name: str, tree: Any, params: Any) -> Any:
  """`tree` in the dtypes of `params`; ValueError where structure or shapes differ."""
  same = jax.tree.structure(tree) == jax.tree.structure(params)
  shapes = [[jnp.shape(x) for x in jax.tree.leaves(t)] for t in (tree, params)]
  if not same or shapes[0] != shapes[1]:
    raise ValueError(f"{name} must have the structure and shapes of params, got {shapes[0]}")
  return jax.tree.map(lambda x, w: jnp.asarray(x, w.dtype), tree, params)
