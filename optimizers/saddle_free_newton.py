"""Saddle-free Newton: curvature counts by its magnitude, so that saddles repel."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxrl import check

from . import _lanczos, _vectors


class SaddleFreeNewtonState(NamedTuple):
  """State of `saddle_free_newton`: its last step, in which it looks for curvature as well."""

  count: jax.typing.ArrayLike
  previous: Any
  metrics: dict[str, jax.Array]


def saddle_free_newton(
  learning_rate: float | optax.Schedule = 1.0,
  *,
  krylov_dim: int = 20,
  damping: Sequence[float] = (1.0, 0.1, 0.01, 0.001),
) -> optax.GradientTransformationExtraArgs:
  r"""Newton steps by the absolute value of the Hessian, on a Krylov space.

  Lanczos' iteration from the gradient g gives an orthonormal basis, the rows of :math:`V`, to
  which the last step is added. With the Hessian on it,
  :math:`V H V^\top = U \Lambda U^\top`,

  .. math::
    u_\lambda = -V^\top (U |\Lambda| U^\top + \lambda I)^{-1} V g,

  of which the one with the smallest loss on this step's batch is taken. Newton's method is
  attracted by saddles; here a direction of negative curvature is left as fast as one of positive
  curvature is descended.

  Args:
    learning_rate: at least 0, or a schedule of the step count; multiplies the step.
    krylov_dim: k, steps of the iteration, at least 1; at most as many as parameters are made.
    damping: the :math:`\lambda` to choose from, each above 0.

  Returns:
    A recipe whose `update` needs `params` and `value_fn`. The state's metrics hold the damping
    that was chosen and the smallest eigenvalue that was seen.

  Raises:
    ValueError: an argument is out of range, or `update` was called without `params`.
    TypeError: `update` was called without `value_fn`.

  Cost: k + 1 Hessian-vector products, each about two gradient evaluations, and an evaluation of
  the loss for each damping; `4 * k + 12` bytes a parameter while it runs, 4 between steps.

  Notes:
    The paper takes k up to 500 on small networks. At a point with no gradient at all there is no
    step: noise or mini-batches have to give it a direction. Where the space closes, it goes on in
    directions in which the gradient has no part, and which therefore don't matter.

  References:
    [194] Dauphin, Pascanu, Gulcehre, Cho, Ganguli, Bengio, "Identifying and Attacking the Saddle
      Point Problem in High-Dimensional Non-Convex Optimization", 2014, arXiv:1406.2572
    Pascanu, Dauphin, Ganguli, Bengio, "On the Saddle Point Problem for Non-Convex
      Optimization", 2014, arXiv:1405.4604

  Example:
    >>> import jax, jax.numpy as jnp
    >>> loss = lambda w: w[0] ** 2 - w[1] ** 2 + w[1] ** 4
    >>> optimizer = saddle_free_newton(damping=(1e-3,))
    >>> w = jnp.array([1.0, 0.1])
    >>> updates, _ = optimizer.update(
    ...   jax.grad(loss)(w), optimizer.init(w), w, value_fn=loss)
    >>> print(", ".join(f"{x:.1f}" for x in w + updates))  # down in one, away in the other
    0.0, 0.2
  """
  check.at_least("learning_rate", learning_rate, 0)
  check.whole("krylov_dim", krylov_dim, 1)
  if not damping:
    raise ValueError("damping must hold at least one number, got ()")
  for value in damping:
    check.above("damping", value, 0)

  def init_fn(params):
    zeros = jax.tree.map(jnp.zeros_like, _vectors.wide(params))
    return SaddleFreeNewtonState(jnp.zeros([], jnp.int32), zeros, _metrics(0.0, 0.0))

  def update_fn(updates, state, params=None, *, value_fn=None, **extra_args):
    del extra_args
    check.params("saddle_free_newton", params)
    value_fn = check.value_fn("saddle_free_newton", value_fn)
    count = optax.safe_increment(state.count)
    if _vectors.size(params) == 0:
      return updates, state._replace(count=count)
    at, gradient = _vectors.wide(params), _vectors.wide(updates)
    basis, matrix = _on_krylov_space(value_fn, at, gradient, state.previous, krylov_dim)
    eigenvalues, vectors = jnp.linalg.eigh(matrix)
    # Of unit length, so that products with it don't overflow.
    parts = vectors.T @ _lanczos.components(basis, _vectors.unit(gradient))
    choices = jnp.asarray(damping, parts.dtype)
    shrunk = parts[None] / (jnp.abs(eigenvalues)[None] + choices[:, None])
    steps = -_vectors.norm(gradient) * (shrunk @ vectors.T)

    def value_at(coefficients):
      return value_fn(_vectors.moved(at, 1, _lanczos.combined(coefficients, basis)))

    values = jax.lax.map(value_at, steps)
    best = jnp.argmin(jnp.where(jnp.isnan(values), jnp.inf, values))
    step = _lanczos.combined(steps[best], basis)
    rate = learning_rate(state.count) if callable(learning_rate) else learning_rate
    step = _vectors.scaled(rate, step)
    metrics = _metrics(choices[best], eigenvalues[0])
    return _vectors.like(step, params), SaddleFreeNewtonState(count, step, metrics)

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _metrics(damping: Any, smallest: Any) -> dict[str, jax.Array]:
  values = {"damping": damping, "smallest_eigenvalue": smallest}
  return {name: jnp.asarray(value, jnp.float32) for name, value in values.items()}


def _on_krylov_space(
  value_fn: Callable[[Any], jax.Array], params: Any, gradient: Any, previous: Any, order: int
) -> tuple[Any, jax.Array]:
  """Basis vectors, the last of them along the previous step, and the Hessian on them."""

  def product(vector):
    return _vectors.hessian_product(value_fn, params, vector)[1]

  order = min(order, _vectors.size(params))
  phases = _vectors.normal(jax.random.key(0), params)
  start, phases = _lanczos.started(phases, gradient, order)
  iterate = _lanczos.step_of(product)
  krylov = jax.lax.fori_loop(0, order, lambda j, krylov: iterate(j, krylov, phases), start)

  added = _outside_unit(krylov.basis, previous)
  image = product(added)
  basis = jax.tree.map(lambda rows, x: jnp.concatenate([rows, x[None]]), krylov.basis, added)
  border = _lanczos.components(basis, image)
  matrix = jnp.zeros((order + 1, order + 1), border.dtype)
  matrix = matrix.at[:order, :order].set(_lanczos.tridiagonal(krylov))
  return basis, matrix.at[-1].set(border).at[:, -1].set(border)


def _outside_unit(basis: Any, tree: Any) -> Any:
  """The tree's direction outside the basis; zero where only rounding is left of it."""
  rest = _lanczos.outside(basis, _vectors.unit(tree))
  length = _vectors.norm(rest)
  tiny = 100 * jnp.finfo(length.dtype).eps
  return jax.tree.map(lambda x: jnp.where(length > tiny, x, 0), _vectors.unit(rest))
