"""What methods share that step in the geometry of a mirror map."""

from typing import Any

import jax
import jax.numpy as jnp
import optax


def wide(x: Any) -> jax.Array:
  """A leaf in float32, or wider where it is."""
  return jnp.asarray(x, jnp.promote_types(jnp.result_type(x), jnp.float32))


def scaled(rate: jax.typing.ArrayLike, gradient: Any) -> Any:
  """rate * gradient, in float32 or wider."""
  return jax.tree.map(lambda g: (rate * wide(g)).astype(wide(g).dtype), gradient)


def moves(decision: Any, params: Any) -> Any:
  """The updates that lead from the parameters to a decision, in the parameters' dtype."""
  return jax.tree.map(lambda new, old: (new - old).astype(old.dtype), decision, params)


def at(rate: float | optax.Schedule, count: jax.typing.ArrayLike) -> Any:
  """The value of a number or of a schedule at a count."""
  return rate(count) if callable(rate) else rate


def norm(tree: Any) -> jax.Array:
  """The Euclidean norm of the whole tree, by squares that cannot overflow."""
  largest = optax.tree.norm(tree, ord=jnp.inf) if jax.tree.leaves(tree) else jnp.zeros(())
  unit = jnp.where(largest > 0, largest, 1)
  return unit * optax.tree.norm(jax.tree.map(lambda x: x / unit, tree))
