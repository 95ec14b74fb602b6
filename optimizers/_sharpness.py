"""What methods share that evaluate the loss at a point uphill from the parameters."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxrl import reduce


def wide(tree: Any) -> Any:
  """The leaves in float32, or wider where they are."""
  return jax.tree.map(lambda x: x.astype(jnp.promote_types(x.dtype, jnp.float32)), tree)


def scaled_to(gradient: Any, radius: jax.typing.ArrayLike, eps: float) -> Any:
  """radius * gradient / (norm + eps) in float32, with squares that cannot overflow.

  The norm is that of the whole tree. A zero gradient stays zero.
  """
  gradient = wide(gradient)
  largest = optax.tree.norm(gradient, ord=jnp.inf)
  unit = jnp.where(largest > 0, largest, 1)
  direction = jax.tree.map(lambda g: g / unit, gradient)
  scale = reduce.ratio(radius, optax.tree.norm(direction) + eps / unit)
  return jax.tree.map(lambda d: scale * d, direction)


def moved(params: Any, perturbation: Any) -> Any:
  """params + perturbation, in the dtype of the parameters."""
  return jax.tree.map(lambda w, e: (w + e).astype(w.dtype), params, perturbation)
