"""Small problems on trees, by name, on which solvers are checked."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from optimizers.solvers._solver import FiniteSum

SIZE, COMPONENTS = 5, 10


def parameters(seed: int = 0, dtype: Any = jnp.float32) -> Any:
  """A tree with a matrix and a scalar."""
  rng = np.random.default_rng(seed)
  shapes = {"pair": (2, 2), "one": ()}
  return jax.tree.map(
    lambda shape: jnp.asarray(rng.normal(size=shape), dtype),
    shapes,
    is_leaf=lambda x: type(x) is tuple,
  )


def problems(evaluated: Callable[[], None] | None = None) -> dict[str, Callable[[], Any]]:
  """What rows may name; `evaluated` is called whenever one is evaluated, not when it is traced."""
  rng = np.random.default_rng(1)
  turn = np.linalg.qr(rng.normal(size=(SIZE, SIZE)))[0]
  factors = rng.normal(size=(COMPONENTS, SIZE, SIZE)) / SIZE
  targets = rng.normal(size=(COMPONENTS, SIZE))

  def counted(function):
    def call(tree, *args):
      if evaluated is not None:
        jax.debug.callback(evaluated)
      flat, unravel = ravel_pytree(tree)
      return unravel(function(flat, *args))

    return call

  def rotation():
    """x -> U x + b, which has one fixed point."""
    return counted(lambda x: jnp.asarray(turn, x.dtype) @ x + jnp.asarray(targets[0], x.dtype))

  def translation():
    """x -> x + b, which has none."""
    return counted(lambda x: x + jnp.asarray(targets[0], x.dtype))

  def least_squares():
    """The mean of gradients A_i^T A_i u - b_i; 1-smooth."""

    def mean(u, index):
      rows = jnp.asarray(factors, u.dtype)[index]
      images = jnp.einsum("bij,j->bi", rows, u)
      return jnp.mean(
        jnp.einsum("bij,bi->bj", rows, images) - jnp.asarray(targets, u.dtype)[index], axis=0
      )

    return FiniteSum(counted(mean), COMPONENTS)

  return {f.__name__: f for f in (rotation, translation, least_squares)}


def misshapen() -> dict[str, Callable[[], Any]]:
  """The same names for problems that lose a part of the tree."""
  lost = lambda tree, *_: tree["pair"]  # noqa: E731
  return {
    "rotation": lambda: lost,
    "translation": lambda: lost,
    "least_squares": lambda: FiniteSum(lost, COMPONENTS),
  }
