"""What methods share that evaluate the loss at a point uphill from the parameters."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxrl import reduce


class Mask(NamedTuple):
  """Which parameters are perturbed, chosen anew in each step.

  Attributes:
    init: `init(params) -> state`.
    update: `update(gradient, state, params) -> (chosen, state)`: booleans in the structure of
      the parameters, one an entry or one a leaf. Where workers have gradients of their own,
      this one is the worker's, and sums over the workers go through `jaxrl.reduce`.
    whole_norm: whether a perturbation is scaled by the norm of the whole gradient rather than
      of the chosen part.
  """

  init: Callable[[Any], Any]
  update: Callable[[Any, Any, Any], tuple[Any, Any]]
  whole_norm: bool = False


class Uphill(NamedTuple):
  """How gradients at and near one point become perturbations.

  Attributes:
    radius: length of a perturbation in the scaled space.
    eps: added to the norm.
    divisor: what to divide by in place of the norm, if anything.
    scales: T, by which each entry's geometry is scaled; `None` for one.
    chosen: booleans, which entries are perturbed.
    whole_norm: whether the norm is that of all entries.
  """

  radius: jax.typing.ArrayLike
  eps: jax.typing.ArrayLike
  divisor: jax.Array | None
  scales: Any
  chosen: Any
  whole_norm: bool


def perturbation(gradient: Any, uphill: Uphill) -> Any:
  """radius * T^2 gradient / (|T gradient| + eps) on the chosen entries, in float32."""
  g = _scaled(uphill.scales, wide(gradient))
  if not uphill.whole_norm:
    g = _kept(uphill.chosen, g)
  if uphill.divisor is None:
    e = scaled_to(g, uphill.radius, uphill.eps)
  else:
    factor = reduce.ratio(uphill.radius, uphill.divisor)
    e = jax.tree.map(lambda x: factor * x, g)
  return _kept(uphill.chosen, _scaled(uphill.scales, e))


def scales_of(params: Any, eta: jax.typing.ArrayLike, biases: bool) -> Any:
  """|w| + eta, entry by entry; 1 for leaves with `bias` in their own name, unless `biases`."""

  def scale(path, w):
    return jnp.abs(w) + eta if biases or "bias" not in path_of(path[-1:]) else jnp.ones_like(w)

  return jax.tree.map_with_path(scale, wide(params))


def choose(
  mask: Mask, gradient: Any, state: Any, params: Any, axis_name: reduce.AxisName | None
) -> tuple[Any, Any]:
  """What `mask` chooses in this step, checked against the parameters, and its new state."""
  with reduce.over(axis_name):
    chosen, state = mask.update(gradient, state, params)
  expected, got = jax.tree.structure(params), jax.tree.structure(chosen)
  if got != expected:
    raise ValueError(f"mask must choose in the structure of the parameters, {expected}, got {got}")
  for w, m in zip(jax.tree.leaves(params), jax.tree.leaves(chosen), strict=True):
    if not jnp.issubdtype(jnp.result_type(m), bool) or jnp.shape(m) not in ((), jnp.shape(w)):
      raise ValueError(
        f"mask must choose by one boolean for each entry {jnp.shape(w)} of a leaf or for all, "
        f"got {jnp.result_type(m)}{list(jnp.shape(m))}"
      )
  return chosen, state


def _scaled(scales: Any, tree: Any) -> Any:
  return tree if scales is None else jax.tree.map(jnp.multiply, scales, tree)


def _kept(chosen: Any, tree: Any) -> Any:
  return jax.tree.map(lambda m, x: jnp.where(m, x, 0), chosen, tree)


def path_of(path: tuple[Any, ...]) -> str:
  """The path of a parameter as one text, `dense_0/kernel`."""
  return jax.tree_util.keystr(path, simple=True, separator="/")


def wide(tree: Any) -> Any:
  """The leaves in float32, or wider where they are."""
  return jax.tree.map(lambda x: x.astype(jnp.promote_types(x.dtype, jnp.float32)), tree)


def scaled_to(gradient: Any, radius: jax.typing.ArrayLike, eps: jax.typing.ArrayLike) -> Any:
  """radius * gradient / (norm + eps) in float32, where no square overflows or vanishes.

  The norm is that of the whole tree. A zero gradient stays zero.
  """
  gradient = wide(gradient)
  if not jax.tree.leaves(gradient):
    return gradient
  unit, norm = _unit_and_norm(gradient)
  scale = reduce.ratio(radius, norm + eps / unit)
  return jax.tree.map(lambda g: scale * (g / unit), gradient)


def _unit_and_norm(tree: Any) -> tuple[jax.Array, jax.Array]:
  """A unit, and the norm of the tree in it: 1 wherever squares in it are exact enough."""
  square = jnp.asarray(optax.tree.norm(tree, squared=True))

  def rescaled():
    largest = optax.tree.norm(tree, ord=jnp.inf)
    unit = jnp.where(largest > 0, largest, 1)
    return unit, optax.tree.norm(jax.tree.map(lambda x: x / unit, tree))

  exact = (square > _VANISHING) & jnp.isfinite(square)
  return jax.lax.cond(exact, lambda: (jnp.ones_like(square), jnp.sqrt(square)), rescaled)


def moved(params: Any, perturbation: Any) -> Any:
  """params + perturbation, in the dtype of the parameters."""
  return jax.tree.map(lambda w, e: (w + e).astype(w.dtype), params, perturbation)


_VANISHING = 1e-20  # below this sum of squares, those that float32 rounds to 0 might matter

EVERYTHING = Mask(
  init=lambda params: (),
  update=lambda gradient, state, params: (jax.tree.map(lambda w: True, params), state),
)
