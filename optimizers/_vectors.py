"""Trees of arrays as vectors, never flattened, so that shardings stay."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxrl import reduce


def wide(tree: Any) -> Any:
  """The leaves in float32, or wider where they are."""
  return jax.tree.map(lambda x: jnp.asarray(x, jnp.promote_types(x.dtype, jnp.float32)), tree)


def size(tree: Any) -> int:
  """How many numbers a tree holds."""
  return sum(leaf.size for leaf in jax.tree.leaves(tree))


def dot(a: Any, b: Any) -> jax.Array:
  """The inner product of two trees; 0 of empty ones."""
  products = jax.tree.map(lambda x, y: jnp.vdot(x, y, precision="highest"), a, b)
  return jnp.sum(jnp.stack(jax.tree.leaves(products) or [jnp.zeros(())]))


def norm(tree: Any) -> jax.Array:
  """The Euclidean norm, by squares that can neither overflow nor underflow."""
  largest, divided = _by_largest(tree)
  return largest * jnp.sqrt(dot(divided, divided))


def unit(tree: Any) -> Any:
  """The tree divided by its norm; zero stays zero."""
  _, divided = _by_largest(tree)
  return scaled(reduce.ratio(1.0, jnp.sqrt(dot(divided, divided))), divided)


def scaled(factor: jax.typing.ArrayLike, tree: Any) -> Any:
  """factor * tree."""
  return jax.tree.map(lambda x: (factor * x).astype(x.dtype), tree)


def moved(tree: Any, factor: jax.typing.ArrayLike, direction: Any) -> Any:
  """tree + factor * direction."""
  return jax.tree.map(lambda x, d: (x + factor * d).astype(x.dtype), tree, direction)


def like(tree: Any, params: Any) -> Any:
  """The tree in the dtypes of `params`."""
  return jax.tree.map(lambda x, w: x.astype(w.dtype), tree, params)


def normal(key: jax.Array, like: Any) -> Any:
  """Independent standard normal numbers in the shapes and dtypes of `like`, on its devices.

  They are drawn in float32, so that a seed means the same whatever the dtype.

  A sign more or less leaves them normal; that of `like` lets XLA shard them as `like` is.
  """
  leaves, structure = jax.tree.flatten(like)
  keys = jax.random.split(key, len(leaves))
  draws = [
    (jnp.where(x < 0, -1, 1) * jax.random.normal(k, x.shape, jnp.float32)).astype(x.dtype)
    for k, x in zip(keys, leaves, strict=True)
  ]
  return jax.tree.unflatten(structure, draws)


def hessian_product(
  loss: Callable[[Any], jax.Array], params: Any, direction: Any
) -> tuple[Any, Any]:
  """The gradient, and the Hessian times `direction`."""
  return jax.jvp(jax.grad(loss), (params,), (direction,))


def _by_largest(tree: Any) -> tuple[jax.Array, Any]:
  """The largest magnitude in the tree, and the tree divided by it (by 1 if it is 0)."""
  peaks = [jnp.max(jnp.abs(x), initial=0) for x in jax.tree.leaves(tree)]
  largest = jnp.max(jnp.stack(peaks or [jnp.zeros(())]))
  divisor = jnp.where(largest == 0, 1, largest)
  return largest, jax.tree.map(lambda x: (x / divisor).astype(x.dtype), tree)
