"""Lanczos' iteration over trees: the Hessian on a Krylov space, with full reorthogonalisation."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrl import check, reduce

from . import _loops, _vectors

_ROUNDING = 10  # Multiples of the machine epsilon at which a residual counts as zero.


class Krylov(NamedTuple):
  """An orthonormal basis, leaves `[order, *leaf]`, and the tridiagonal matrix on it.

  `off[j]` couples the vectors j and j + 1; the last one is what is left outside the space.
  """

  basis: Any
  diagonal: jax.Array
  off: jax.Array
  scale: jax.Array


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

  def step(j, krylov, phases, params, *operands):
    vector = jax.tree.map(lambda rows: rows[j], krylov.basis)
    _, product = _vectors.hessian_product(lambda w: loss(w, *operands), params, vector)
    scale = jnp.maximum(krylov.scale, _length(product))
    rest = _outside(krylov.basis, product)
    beta = _length(rest)
    closed = beta <= _ROUNDING * jnp.finfo(beta.dtype).eps * scale
    # A closed space goes on in a new direction: eigenvalues that it missed are still found.
    # Cosines of multiples of random phases are such directions, and cheaper than new draws.
    rest = jax.tree.map(lambda x, p: jnp.where(closed, jnp.cos((j + 1) * p), x), rest, phases)
    following = _unit(_outside(krylov.basis, _unit(rest)))
    put = lambda rows, x: rows.at[j + 1].set(x, mode="drop")  # noqa: E731
    return Krylov(
      jax.tree.map(put, krylov.basis, following),
      krylov.diagonal.at[j].set(_vectors.dot(vector, product)),
      krylov.off.at[j].set(jnp.where(closed, 0, beta)),
      scale,
    )

  return step


def run(
  step: Callable[..., Krylov], order: int, key: jax.Array, params: Any, *operands: Any
) -> Krylov:
  """`order` steps from a random unit vector, or as many as there are parameters."""
  start, phases = _start(key, params, min(order, _vectors.size(params)))
  return _loops.repeat(step, start.diagonal.size, start, phases, params, *operands)


@functools.partial(jax.jit, static_argnames="order")
def _start(key: jax.Array, params: Any, order: int) -> tuple[Krylov, Any]:
  draws = _vectors.normal(key, params)
  first = _unit(draws)
  basis = jax.tree.map(lambda x: jnp.zeros((order, *x.shape), x.dtype).at[0].set(x), first)
  dtype = jnp.result_type(*jax.tree.leaves(params))
  krylov = Krylov(basis, jnp.zeros(order, dtype), jnp.zeros(order, dtype), jnp.zeros((), dtype))
  return krylov, _vectors.scaled(10, draws)


@jax.jit
def ritz(krylov: Krylov) -> tuple[jax.Array, jax.Array]:
  """Eigenvalues `[order]`, ascending, of the tridiagonal matrix, and its eigenvectors."""
  inner = krylov.off[:-1]
  matrix = jnp.diag(krylov.diagonal) + jnp.diag(inner, 1) + jnp.diag(inner, -1)
  return jnp.linalg.eigh(matrix)


def combined(coefficients: jax.Array, basis: Any) -> Any:
  """Sums of basis vectors: coefficients `[..., order]` give leaves `[..., *leaf]`."""
  return jax.tree.map(
    lambda rows: jnp.tensordot(coefficients, rows, axes=1, precision="highest"), basis
  )


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


def _outside(basis: Any, tree: Any) -> Any:
  """The part of `tree` orthogonal to the basis; twice, since once leaves rounding errors."""

  def project(_, tree):
    products = jax.tree.map(
      lambda rows, x: jnp.tensordot(rows, x, axes=x.ndim, precision="highest"), basis, tree
    )
    inside = jnp.sum(jnp.stack(jax.tree.leaves(products)), axis=0)
    return _vectors.moved(tree, -1, combined(inside, basis))

  return jax.lax.fori_loop(0, 2, project, tree)


def _length(tree: Any) -> jax.Array:
  return jnp.sqrt(_vectors.dot(tree, tree))


def _unit(tree: Any) -> Any:
  return _vectors.scaled(reduce.ratio(1.0, _length(tree)), tree)
