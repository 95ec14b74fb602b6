"""The largest entries of arrays, by counting: a sort would gather sharded ones."""

import math

import jax
import jax.numpy as jnp


def largest(magnitudes: list[jax.Array], wanted: int) -> list[jax.Array]:
  """Which entries are among the `wanted` largest of all arrays together; of equals, the first."""
  # Floats that are not negative are in the order of their bits, taken as whole numbers.
  bits = [jax.lax.bitcast_convert_type(leaf, jnp.int32) for leaf in magnitudes]

  def count(chosen):
    return sum((jnp.sum(c, dtype=jnp.int32) for c in chosen), start=jnp.int32(0))

  def with_bit(i, threshold):
    raised = threshold | (1 << (30 - i))
    return jnp.where(count([b >= raised for b in bits]) >= wanted, raised, threshold)

  threshold = jax.lax.fori_loop(0, 31, with_bit, jnp.int32(0))
  left = wanted - count([b > threshold for b in bits])
  chosen = []
  for b in bits:
    equal = b == threshold
    chosen.append((b > threshold) | (equal & (position(equal) <= left)))
    left = left - count([equal])
  return chosen


def position(chosen: jax.Array) -> jax.Array:
  """How many entries of an array are chosen, up to and with each of them, int32.

  Counted by rows, so that an array whose first axis is sharded is not gathered.
  """
  rows = chosen.reshape(chosen.shape[0] if chosen.ndim else 1, math.prod(chosen.shape[1:]))
  totals = jnp.sum(rows, axis=1, dtype=jnp.int32)
  before = jnp.cumsum(totals) - totals
  so_far = jnp.cumsum(rows, axis=1, dtype=jnp.int32) + before[:, None]
  return so_far.reshape(chosen.shape)
