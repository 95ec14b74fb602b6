"""Lanczos' iteration over trees: a symmetric map on a Krylov space, fully reorthogonalised."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from . import _vectors

_ROUNDING = 10  # Multiples of the machine epsilon at which a residual counts as zero.


class Krylov(NamedTuple):
  """An orthonormal basis, leaves `[order, *leaf]`, and the tridiagonal matrix on it.

  `off[j]` couples the vectors j and j + 1; the last one is what is left outside the space.
  """

  basis: Any
  diagonal: jax.Array
  off: jax.Array
  scale: jax.Array


def step_of(product: Callable[..., Any]) -> Callable[..., Krylov]:
  """A step of the iteration on the linear map `product(vector, *operands)`.

  Make it once for several runs: it is compiled once.
  """

  def step(j, krylov, phases, *operands):
    vector = jax.tree.map(lambda rows: rows[j], krylov.basis)
    image = product(vector, *operands)
    scale = jnp.maximum(krylov.scale, _vectors.norm(image))
    rest = outside(krylov.basis, image)
    beta = _vectors.norm(rest)
    closed = beta <= _ROUNDING * jnp.finfo(beta.dtype).eps * scale
    # A closed space goes on in a new direction: eigenvalues that it missed are still found.
    # Cosines of multiples of random phases are such directions, and cheaper than new draws.
    rest = jax.tree.map(lambda x, p: jnp.where(closed, jnp.cos((j + 1) * p), x), rest, phases)
    following = _vectors.unit(outside(krylov.basis, _vectors.unit(rest)))
    put = lambda rows, x: rows.at[j + 1].set(x, mode="drop")  # noqa: E731
    return Krylov(
      jax.tree.map(put, krylov.basis, following),
      krylov.diagonal.at[j].set(_vectors.dot(vector, image)),
      krylov.off.at[j].set(jnp.where(closed, 0, beta)),
      scale,
    )

  return step


@functools.partial(jax.jit, static_argnames="order")
def started(draws: Any, first: Any, order: int) -> tuple[Krylov, Any]:
  """The state before the first of `order` steps, and the phases that they are handed.

  Args:
    draws: a tree of normal numbers, for directions when the space closes.
    first: the first vector, of any length.
    order: how many steps.
  """
  first = _vectors.unit(first)
  basis = jax.tree.map(lambda x: jnp.zeros((order, *x.shape), x.dtype).at[0].set(x), first)
  dtype = jnp.result_type(*jax.tree.leaves(first))
  krylov = Krylov(basis, jnp.zeros(order, dtype), jnp.zeros(order, dtype), jnp.zeros((), dtype))
  return krylov, _vectors.scaled(10, draws)


def tridiagonal(krylov: Krylov) -> jax.Array:
  """The matrix `[order, order]` of the map on the basis."""
  inner = krylov.off[:-1]
  return jnp.diag(krylov.diagonal) + jnp.diag(inner, 1) + jnp.diag(inner, -1)


@jax.jit
def ritz(krylov: Krylov) -> tuple[jax.Array, jax.Array]:
  """Eigenvalues `[order]`, ascending, of the tridiagonal matrix, and its eigenvectors."""
  return jnp.linalg.eigh(tridiagonal(krylov))


def combined(coefficients: jax.Array, basis: Any) -> Any:
  """Sums of basis vectors: coefficients `[..., order]` give leaves `[..., *leaf]`."""
  return jax.tree.map(
    lambda rows: jnp.tensordot(coefficients, rows, axes=1, precision="highest"), basis
  )


def components(basis: Any, tree: Any) -> jax.Array:
  """The inner products `[order]` of a tree with the basis vectors."""
  products = jax.tree.map(
    lambda rows, x: jnp.tensordot(rows, x, axes=x.ndim, precision="highest"), basis, tree
  )
  return jnp.sum(jnp.stack(jax.tree.leaves(products)), axis=0)


def outside(basis: Any, tree: Any) -> Any:
  """The part of `tree` orthogonal to the basis; twice, since once leaves rounding errors."""

  def project(_, tree):
    return _vectors.moved(tree, -1, combined(components(basis, tree), basis))

  return jax.lax.fori_loop(0, 2, project, tree)
