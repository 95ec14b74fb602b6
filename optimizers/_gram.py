"""Inner products of the last m gradients, and what preconditioners make of them.

All is about one gradient c, the one that was added last. It is a row of the window G itself,
:math:`c = G^\\top e_t`, so that a function f of :math:`G^\\top G` gives
:math:`f(G^\\top G) c = G^\\top f(G G^\\top) e_t`: a weighted sum of the window's gradients,
from an m x m matrix, in which no difference of large numbers is divided by the damping.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrl import reduce


class Gram(NamedTuple):
  """Inner products of m vectors, of which squares could over- or underflow.

  In float64 where jax has it enabled, whatever the parameters' dtype.

  Attributes:
    norms: `[m]`.
    cosines: `[m, m]`; 0 where a vector is.
  """

  norms: jax.Array
  cosines: jax.Array


class Weights(NamedTuple):
  """Of a sum over the window: `factor` times `rows [m]`, apart lest they underflow."""

  rows: jax.Array
  factor: jax.Array


def empty(m: int) -> Gram:
  """Of m zero vectors."""
  return Gram(jnp.zeros(m, jnp.result_type(float)), jnp.zeros((m, m), jnp.result_type(float)))


def relative(x: jax.Array, size: jax.Array) -> jax.Array:
  """x / size, and 0 where the size is 0."""
  return reduce.ratio(x, jnp.broadcast_to(size, ()))


def size_of(leaves: Sequence[jax.Array]) -> jax.Array:
  """The largest magnitude of a tree."""
  largest = [jnp.max(jnp.abs(x), initial=0).astype(jnp.result_type(float)) for x in leaves]
  return jnp.max(jnp.stack(largest)) if largest else jnp.zeros(())


def scales(gram: Gram, row: jax.Array, size: jax.Array) -> jax.Array:
  """What the vectors are divided by before they are multiplied: norms; `size` in the new row."""
  return gram.norms.at[row].set(size)


def add_parts(like: jax.Array, parts: Sequence[jax.Array]) -> jax.Array:
  """The sum of parts `[m, n]` over their second axes, `[m]`.

  Parts of one shape are added first. If the second axes are sharded, what crosses between
  devices is m numbers for each shape.
  """
  by_width: dict[int, Any] = {}
  for part in parts:
    by_width[part.shape[1]] = by_width.get(part.shape[1], 0) + part
  return sum((jnp.sum(part, axis=1) for part in by_width.values()), jnp.zeros_like(like))


def with_row(gram: Gram, row: jax.Array, dots: jax.Array, size: jax.Array) -> Gram:
  """After a row was replaced by a vector of largest magnitude `size`.

  Args:
    gram: before that.
    row: which.
    dots: the new vector over `size`, times each vector over `scales`.
    size: of the new vector.
  """
  norm = jnp.sqrt(dots[row])
  cosines = reduce.ratio(dots, norm).at[row].set(jnp.where(norm > 0, 1, 0))
  matrix = gram.cosines.at[row].set(cosines).at[:, row].set(cosines)
  return Gram(gram.norms.at[row].set(size * norm), matrix)


def damped_inverse(gram: Gram, row: jax.Array, damp: Any) -> Weights:
  r"""Weights by which a window G gives :math:`(\lambda I + G^\top G / m)^{-1} c`, c its row.

  They are :math:`m (m \lambda I + G G^\top)^{-1} e_t`, by Cholesky, after rows and columns are
  scaled to a unit diagonal. There the damping is raised to 16 m units of rounding where it is
  less. With m / 4 of them the factorization was seen to fail on windows of equal gradients, and
  with m the sum over the window, in which their weights then cancel, was wrong by its length.
  """
  m = len(gram.norms)
  least = 16 * m * jnp.finfo(gram.norms.dtype).eps
  ridge = jnp.sqrt(m * jnp.asarray(damp, gram.norms.dtype))
  ridge = jnp.maximum(ridge, jnp.sqrt(least) * gram.norms)
  scale = jnp.hypot(ridge, gram.norms)
  share = gram.norms / scale
  matrix = share[:, None] * gram.cosines * share[None]
  matrix = jnp.fill_diagonal(matrix, 1, inplace=False)
  unit = jnp.zeros_like(share).at[row].set(1)
  factors = jax.scipy.linalg.cho_factor(matrix, lower=True)
  return Weights(jax.scipy.linalg.cho_solve(factors, unit) / scale, m / scale[row])
