"""Lanczos' iteration on the Hessian, in the loops of `_loops`, and the outermost eigenvalues.

The iteration itself is `optimizers/_lanczos.py`'s, which is methods' as well.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrl import check
from optimizers import _lanczos
from optimizers._lanczos import Krylov, combined, ritz

from . import _loops, _vectors


class Extremes(NamedTuple):
  """Smallest and largest eigenvalues, with bounds on their errors and unit eigenvectors.

  Attributes:
    smallest: `[count]`, ascending.
    largest: `[count]`, descending.
    smallest_error: each lies within this distance of an eigenvalue, up to rounding, `[count]`.
    largest_error: likewise.
    smallest_vectors: leaves `[count, *leaf]`.
    largest_vectors: likewise.
  """

  smallest: jax.Array
  largest: jax.Array
  smallest_error: jax.Array
  largest_error: jax.Array
  smallest_vectors: Any
  largest_vectors: Any


def step_of(loss: Callable[..., jax.Array]) -> Callable[..., Krylov]:
  """A step of the iteration on the Hessian of `loss(params, *operands)`.

  Make it once for several runs: it is compiled once.
  """

  def product(vector, params, *operands):
    return _vectors.hessian_product(lambda w: loss(w, *operands), params, vector)[1]

  return _lanczos.step_of(product)


def run(
  step: Callable[..., Krylov], order: int, key: jax.Array, params: Any, *operands: Any
) -> Krylov:
  """`order` steps from a random unit vector, or as many as there are parameters."""
  draws = _normal(key, params)
  start, phases = _lanczos.started(draws, draws, min(order, _vectors.size(params)))
  return _loops.repeat(step, start.diagonal.size, start, phases, params, *operands)


_normal = jax.jit(_vectors.normal)


def check_counts(count: int, order: int, params: Any) -> None:
  """ValueError unless `order` steps can give `count` eigenvalues at each end."""
  check.whole("count", count, 1)
  check.whole("order", order, 1)
  most = min(order, _vectors.size(params))
  if count > most:
    raise ValueError(f"count must be at most {most}, the steps of the iteration, got {count}")


@functools.partial(jax.jit, static_argnames="count")
def extremes(krylov: Krylov, count: int) -> Extremes:
  """The `count` outermost eigenvalues at each end."""
  eigenvalues, vectors = ritz(krylov)
  errors = krylov.off[-1] * jnp.abs(vectors[-1])
  small, large = jnp.arange(count), jnp.arange(eigenvalues.size)[::-1][:count]
  return Extremes(
    eigenvalues[small],
    eigenvalues[large],
    errors[small],
    errors[large],
    combined(vectors[:, small].T, krylov.basis),
    combined(vectors[:, large].T, krylov.basis),
  )
