"""What online methods share: norms of whole trees, balls, and steps in float32."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxrl import reduce


def norm(tree: Any) -> jax.Array:
  """The 2-norm of a whole tree, by squares that neither overflow nor vanish."""
  largest = optax.tree.norm(tree, ord=jnp.inf)
  unit = jnp.where(largest > 0, largest, 1)
  return largest * optax.tree.norm(jax.tree.map(lambda x: x / unit, tree))


def root_of_squares(*numbers: jax.typing.ArrayLike) -> jax.Array:
  """The root of the sum of the numbers' squares, which neither overflow nor vanish."""
  total = jnp.abs(jnp.asarray(numbers[0]))
  for number in numbers[1:]:
    total = jnp.hypot(total, number)
  return total


def clipped(tree: Any, radius: jax.typing.ArrayLike | None) -> Any:
  """The nearest point to `tree` in the ball of this radius around 0; of none, `tree`."""
  if radius is None:
    return tree
  share = jnp.minimum(1, reduce.ratio(radius, norm(tree)))
  return jax.tree.map(lambda x: (share * x).astype(x.dtype), tree)


def rate_at(rate: Any, count: jax.typing.ArrayLike) -> Any:
  """A learning rate, or the value of its schedule."""
  return rate(count) if callable(rate) else rate


def stepped(point: Any, rate: jax.typing.ArrayLike, gradient: Any) -> Any:
  """point - rate * gradient, in the point's dtypes."""
  return jax.tree.map(lambda x, g: (x - rate * g).astype(x.dtype), point, gradient)


def mixed(one: Any, other: Any, share: jax.typing.ArrayLike) -> Any:
  """The point between both to which `other` gives this share."""
  return jax.tree.map(lambda a, b: (a + share * (b - a)).astype(a.dtype), one, other)


def towards(point: Any, params: Any) -> Any:
  """The update that takes the parameters to `point`, in their dtypes."""
  return jax.tree.map(lambda x, w: (x - w.astype(x.dtype)).astype(w.dtype), point, params)
