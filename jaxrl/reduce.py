"""Weighted sums and means over the examples of a batch: the one reduction of every loss.

Every statistic goes through here, so that it is one of the whole batch also where each
worker sees a part of it: within `over(axis_name)` sums are added up over the workers.
"""

import contextlib
import contextvars
from collections.abc import Iterator
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

AxisName: TypeAlias = str | tuple[str, ...]

_axis_name: contextvars.ContextVar[AxisName | None] = contextvars.ContextVar(
  "axis_name", default=None
)


@contextlib.contextmanager
def over(axis_name: AxisName | None) -> Iterator[None]:
  """Makes the sums traced within it global over the workers along `axis_name`."""
  token = _axis_name.set(axis_name)
  try:
    yield
  finally:
    _axis_name.reset(token)


def workers() -> int:
  """The number of workers that share the batch; 1 outside of `over`."""
  axis_name = _axis_name.get()
  return 1 if axis_name is None else jax.lax.psum(1, axis_name)


def all_workers(total: jax.Array) -> jax.Array:
  """A worker's part of a sum, added up over all workers."""
  axis_name = _axis_name.get()
  return total if axis_name is None else jax.lax.psum(total, axis_name)


def all_rows(rows: jax.Array) -> jax.Array:
  """The rows `[B, ...]` of the whole batch, from each worker's part of them."""
  axis_name = _axis_name.get()
  if axis_name is None:
    return rows
  return jax.lax.all_gather(rows, axis_name, tiled=True, to="invarying")


def worker_mean(tree: Any) -> Any:
  """The floats that differ between the workers, averaged over them; the rest as it is."""
  axis_name = _axis_name.get()
  names = (axis_name,) if isinstance(axis_name, str) else axis_name or ()

  def mean(x):
    differs = tuple(n for n in names if n in jax.typeof(x).manual_axis_type.varying)
    is_float = jnp.issubdtype(x.dtype, jnp.floating)
    return jax.lax.pmean(x, differs) if differs and is_float else x

  return jax.tree.map(mean, tree)


def batch_sum(values: jax.Array) -> jax.Array:
  """The sum of `values` over the whole batch."""
  return all_workers(jnp.sum(values))


def batch_max(values: jax.Array) -> jax.Array:
  """The largest of `values` that are not negative over the whole batch; 0 of none."""
  axis_name = _axis_name.get()
  largest = jnp.max(values, initial=0)
  return largest if axis_name is None else jax.lax.pmax(largest, axis_name)


def weighted_sum(values: jax.Array, weights: jax.Array) -> jax.Array:
  """sum_i w_i v_i, where values at weight 0 don't count even if they are not finite."""
  return batch_sum(weighted(values, weights))


def weighted(values: jax.Array, weights: jax.Array) -> jax.Array:
  """w_i v_i, and 0 at weight 0 even where the value is not finite."""
  return weights * jnp.where(weights == 0, 0, values)


def ratio(numerator: jax.typing.ArrayLike, denominator: jax.Array) -> jax.Array:
  """numerator / denominator, and 0 where the denominator is 0."""
  empty = denominator == 0
  return jnp.where(empty, 0, numerator / jnp.where(empty, 1, denominator))


def weighted_mean(values: jax.Array, weights: jax.Array) -> jax.Array:
  """sum_i w_i v_i / sum_i w_i; 0 for an empty batch."""
  return ratio(weighted_sum(values, weights), batch_sum(weights))


def group_sums(values: jax.Array, group: jax.Array, num_groups: int) -> jax.Array:
  """The sums of `values [B]` within each group, over the whole batch: `[num_groups]`."""
  return all_workers(jax.ops.segment_sum(values, group, num_segments=num_groups))
