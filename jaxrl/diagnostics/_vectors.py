"""Trees of arrays as vectors in float32 (or wider), never flattened, so that shardings stay."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrl import reduce

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
  return jax.tree.map(lambda x: jnp.asarray(x, jnp.promote_types(x.dtype, jnp.float32)), params)


def size(tree: Any) -> int:
  """How many numbers a tree holds."""
  return sum(leaf.size for leaf in jax.tree.leaves(tree))


def dot(a: Any, b: Any) -> jax.Array:
  """The inner product of two trees."""
  products = jax.tree.map(lambda x, y: jnp.vdot(x, y, precision="highest"), a, b)
  return jnp.sum(jnp.stack(jax.tree.leaves(products)))


def norm(tree: Any) -> jax.Array:
  """The Euclidean norm, by squares that can neither overflow nor underflow."""
  largest, divided = _by_largest(tree)
  return largest * jnp.sqrt(dot(divided, divided))


def unit(tree: Any) -> Any:
  """The tree divided by its norm; zero stays zero."""
  _, divided = _by_largest(tree)
  return scaled(reduce.ratio(1.0, jnp.sqrt(dot(divided, divided))), divided)


def _by_largest(tree: Any) -> tuple[jax.Array, Any]:
  """The largest magnitude in the tree, and the tree divided by it (by 1 if it is 0)."""
  largest = jnp.max(jnp.stack([jnp.max(jnp.abs(x), initial=0) for x in jax.tree.leaves(tree)]))
  divisor = jnp.where(largest == 0, 1, largest)
  return largest, jax.tree.map(lambda x: (x / divisor).astype(x.dtype), tree)


def scaled(factor: jax.typing.ArrayLike, tree: Any) -> Any:
  """factor * tree."""
  return jax.tree.map(lambda x: (factor * x).astype(x.dtype), tree)


def moved(tree: Any, factor: jax.typing.ArrayLike, direction: Any) -> Any:
  """tree + factor * direction."""
  return jax.tree.map(lambda x, d: (x + factor * d).astype(x.dtype), tree, direction)


def normal(key: jax.Array, like: Any) -> Any:
  """Independent standard normal numbers in the shapes of `like`, on its devices.

  A sign more or less leaves them normal; that of `like` lets XLA shard them as `like` is.
  """
  leaves, structure = jax.tree.flatten(like)
  keys = jax.random.split(key, len(leaves))
  draws = [
    jnp.where(x < 0, -1, 1) * jax.random.normal(k, x.shape, x.dtype)
    for k, x in zip(keys, leaves, strict=True)
  ]
  return jax.tree.unflatten(structure, draws)


def hessian_product(loss: Loss, params: Any, direction: Any) -> tuple[Any, Any]:
  """The gradient, and the Hessian times `direction`."""
  return jax.jvp(jax.grad(loss), (params,), (direction,))


def like(name: str, tree: Any, params: Any) -> Any:
  """`tree` in the dtypes of `params`; ValueError where structure or shapes differ."""
  same = jax.tree.structure(tree) == jax.tree.structure(params)
  shapes = [[jnp.shape(x) for x in jax.tree.leaves(t)] for t in (tree, params)]
  if not same or shapes[0] != shapes[1]:
    raise ValueError(f"{name} must have the structure and shapes of params, got {shapes[0]}")
  return jax.tree.map(lambda x, w: jnp.asarray(x, w.dtype), tree, params)
