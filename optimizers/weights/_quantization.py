"""What quantisers of weights share."""

import math
import numbers
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp

from jaxrl import reduce


def check_axis(axis: Any) -> None:
  """Raises ValueError unless `axis` is a whole number."""
  if isinstance(axis, bool) or not isinstance(axis, numbers.Integral):
    raise ValueError(f"axis must be a whole number, got {axis!r}")


def all_but(axis: int, kernel: jax.Array) -> tuple[int, ...]:
  """The axes of a kernel without that of its units; ValueError if it has no such axis."""
  if not -kernel.ndim <= axis < kernel.ndim:
    raise ValueError(f"axis must be one of a kernel of shape {kernel.shape}, got {axis}")
  return tuple(i for i in range(kernel.ndim) if i != axis % kernel.ndim)


def mean_of(arrays: Iterable[jax.Array]) -> jax.Array:
  """The mean of the entries of all arrays; 0 of none."""
  arrays = list(arrays)
  total = sum((jnp.sum(x, dtype=jnp.float32) for x in arrays), start=jnp.zeros([], jnp.float32))
  return reduce.ratio(total, jnp.asarray(sum(x.size for x in arrays), jnp.float32))


def straight_through(x: jax.Array, rounded: jax.Array) -> jax.Array:
  """`rounded`, to the bit, with the derivative of `x`."""
  return jax.lax.stop_gradient(rounded) + (x - jax.lax.stop_gradient(x))


def mean_magnitude(x: jax.Array, axes: tuple[int, ...] | None = None) -> jax.Array:
  """The mean of `|x|` over `axes`, which stay, in float32; 0 of nothing."""
  sizes = x.shape if axes is None else [x.shape[i] for i in axes]
  total = jnp.sum(jnp.abs(_wide(x)), axis=axes, keepdims=axes is not None)
  return total / max(math.prod(sizes), 1)


def statistics_of(kernel: jax.Array, bits: int, axes: tuple[int, ...]) -> tuple[jax.Array, ...]:
  """The scale of each unit, `2 mean|w|` over `axes`, and where each weight is between levels.

  Level k lies in the middle between the places k and k + 1, for k from `-2^(bits - 1)`.
  """
  scale = 2 * mean_magnitude(jax.lax.stop_gradient(kernel), axes)
  place = _wide(kernel) / jnp.where(scale == 0, 1, scale) * 2 ** (bits - 1)
  return scale, place


def codes_at(place: jax.Array, bits: int) -> jax.Array:
  """The levels k that weights are rounded to, int32."""
  half = 2 ** (bits - 1)
  return jnp.clip(jnp.round(place - 0.5), -half, half - 1).astype(jnp.int32)


def by_statistics(kernel: jax.Array, bits: int, axes: tuple[int, ...]) -> jax.Array:
  """The kernel rounded to `2^bits` levels by the statistics over `axes`, straight through."""
  scale, place = statistics_of(kernel, bits, axes)
  rounded = scale * ((codes_at(place, bits) + 0.5) / 2 ** (bits - 1))
  return straight_through(kernel, rounded.astype(kernel.dtype))


def _wide(x: jax.Array) -> jax.Array:
  return x.astype(jnp.promote_types(x.dtype, jnp.float32))
