"""Weighted sums and means over the examples of a batch: the one reduction of every loss."""

import jax
import jax.numpy as jnp


def batch_sum(values: jax.Array) -> jax.Array:
  """The sum of `values` over the whole batch. Every statistic of a loss goes through here."""
  return jnp.sum(values)


def weighted_sum(values: jax.Array, weights: jax.Array) -> jax.Array:
  """sum_i w_i v_i, where values at weight 0 don't count even if they are not finite."""
  return batch_sum(weights * jnp.where(weights == 0, 0, values))


def ratio(numerator: jax.typing.ArrayLike, denominator: jax.Array) -> jax.Array:
  """numerator / denominator, and 0 where the denominator is 0."""
  empty = denominator == 0
  return jnp.where(empty, 0, numerator / jnp.where(empty, 1, denominator))


def weighted_mean(values: jax.Array, weights: jax.Array) -> jax.Array:
  """sum_i w_i v_i / sum_i w_i; 0 for an empty batch."""
  return ratio(weighted_sum(values, weights), batch_sum(weights))


def group_sums(values: jax.Array, group: jax.Array, num_groups: int) -> jax.Array:
  """The sums of `values [B]` within each group: `[num_groups]`."""
  return jax.ops.segment_sum(values, group, num_segments=num_groups)
