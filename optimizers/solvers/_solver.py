"""The record that every solver is, and the problems that solvers are made for."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax


class Solver(NamedTuple):
  """An iteration that asks its problem where and what it wants, made by `method(problem, ...)`.

  A state is a NamedTuple of arrays that a step leaves in shapes and dtypes as they were. Its
  field `params` is the answer so far, in the structure of what `init` was given, in float32 or
  wider; a `seed` of int32 makes draws, and `metrics` holds float32 scalars with constant keys.
  Both functions are pure, and run under `jax.jit`, `jax.vmap` and `jax.lax.scan`:
  `jax.lax.scan(lambda state, _: (solver.step(state), state.metrics), state, length=100)`.

  Attributes:
    init: `init(params) -> state`.
    step: `step(state) -> state`.
  """

  init: Callable[[Any], Any]
  step: Callable[[Any], Any]


class FiniteSum(NamedTuple):
  """An operator that is the mean of others.

  Attributes:
    mean: `mean(params, index) -> tree`, the mean of the components `index [b]` at `params`, in
      their structure.
    size: how many components there are.
  """

  mean: Callable[[Any, jax.Array], Any]
  size: int


def same_structure(name: str, tree: Any, like: Any) -> Any:
  """`tree`, what the function `name` gave; ValueError unless it has the structure of `like`."""
  got, expected = jax.tree.structure(tree), jax.tree.structure(like)
  if got != expected:
    raise ValueError(f"{name} must give the structure of the parameters, {expected}, got {got}")
  return tree
