"""What augmentations that mix pairs of examples share."""

import chex
import jax
import jax.numpy as jnp


def draw_pairs(
  key: jax.Array, alpha: float, size: int, mask: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
  """One ratio from Beta(alpha, alpha), 1 at alpha = 0, and a random partner for each example.

  The partners are a permutation of the examples with a nonzero mask, and one of the rest, so
  padding is never mixed into an example.
  """
  ratio_key, order_key = jax.random.split(key)
  ratio = jnp.where(alpha > 0, jax.random.beta(ratio_key, alpha, alpha), 1)
  padding = jnp.zeros(size, bool) if mask is None else mask == 0
  chex.assert_shape(padding, (size,))
  shuffled = jnp.lexsort((jax.random.uniform(order_key, (size,)), padding))
  partner = jnp.zeros_like(shuffled).at[jnp.argsort(padding)].set(shuffled)
  return ratio, partner


def mix(values: jax.Array, ratio: jax.Array, partner: jax.Array) -> jax.Array:
  """`ratio` of each example and the rest of its partner, along the first axis."""
  if not jnp.issubdtype(values.dtype, jnp.floating):
    values = values.astype(ratio.dtype)
  ratio = ratio.astype(values.dtype)
  return ratio * values + (1 - ratio) * values[partner]
