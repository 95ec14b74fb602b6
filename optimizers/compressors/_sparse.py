"""Messages of a few entries of an array: how many, and where they stand."""

import fractions
import math
import numbers
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp


class SparseMessage(NamedTuple):
  """Some entries of an array: `values [k]` and the `indices [k]` where they stand."""

  values: jax.Array
  indices: jax.Array


def entries_of(k: int | float) -> Callable[[int], int]:
  """The number of entries that `k`, whole or a fraction, means in an array of a given size.

  Raises:
    ValueError: `k` is neither.
  """
  whole = isinstance(k, numbers.Integral) and not isinstance(k, bool) and k >= 1
  fraction = isinstance(k, numbers.Real) and not isinstance(k, numbers.Integral) and 0 < k <= 1
  if not whole and not fraction:
    raise ValueError(f"k must be a fraction in (0, 1] or a whole number above 0, got {k!r}")

  def entries(size):
    # By way of its decimals, for which 0.07 * 100 is 7 and not a little more.
    wanted = k if whole else math.ceil(fractions.Fraction(str(k)) * size)
    return min(int(wanted), size)

  return entries


def narrow(indices: jax.Array, size: int) -> jax.Array:
  """Indices into an array of `size` entries, in the fewest bytes that hold them."""
  return indices.astype(jnp.uint16 if size <= 2**16 else jnp.int32)


def add_entries(
  total: jax.Array, values: jax.Array, indices: jax.Array, scale: jax.typing.ArrayLike
) -> jax.Array:
  """`total` plus `scale * values` at the flat `indices`, each of which comes once."""
  at = total.reshape(-1).at[indices.astype(jnp.int32)]
  scaled = (scale * values).astype(total.dtype)
  return at.add(scaled, unique_indices=True).reshape(total.shape)
