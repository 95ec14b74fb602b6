"""Mirror maps: the geometry in which mirror descent and its relatives take their steps."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.core
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax

from jaxrl import check, reduce

from ._mirror import norm, wide
from .projections import Projection, nearest_in_norm


class MirrorMap(NamedTuple):
  r"""The functions that mirror descent needs of a map :math:`\psi`.

  Points are kept in whatever coordinates make steps exact; all are float32 or wider.

  Attributes:
    point: `point(params) -> point`, the coordinates of a point of the domain.
    step: `step(point, direction) -> point`, the minimiser over the domain of
      :math:`\langle d, x \rangle + B_\psi(x, p)`.
    params: `params(point)`, the parameters that the coordinates stand for.
    norm: `norm(direction)`, dual to a norm in which :math:`\psi` is 1-strongly convex.
  """

  point: Callable[[Any], Any]
  step: Callable[[Any, Any], Any]
  params: Callable[[Any], Any]
  norm: Callable[[Any], jax.Array]


def euclidean(projection: Projection | None = None) -> MirrorMap:
  r"""Gradient steps in the whole space or a domain of it: :math:`\psi(x) = \tfrac12 \|x\|_2^2`.

  .. math::
    \mathrm{step}(p, d) = \arg\min_{x \in X} \|x - (p - d)\|_2

  Args:
    projection: the domain :math:`X`; None is the whole space. A start outside counts as the
      nearest point inside.

  Raises:
    TypeError: `projection` is not a Projection.

  References:
    Baseline; Nemirovski, Yudin, "Problem Complexity and Method Efficiency in
      Optimization", 1983

  Example:
    >>> import jax.numpy as jnp
    >>> mirror = euclidean()
    >>> float(mirror.step(mirror.point(jnp.array(1.0)), 0.25))
    0.75
  """
  nearest = _nearest(projection)
  return MirrorMap(
    point=lambda params: nearest(jax.tree.map(wide, params)),
    step=lambda point, direction: nearest(jax.tree.map(jnp.subtract, point, direction)),
    params=lambda point: point,
    norm=norm,
  )


def mahalanobis(
  matrix: float | Sequence[float] | jax.Array, projection: Projection | None = None
) -> MirrorMap:
  r"""Preconditioned steps: :math:`\psi(x) = \tfrac12 x^\top H x`.

  .. math::
    \mathrm{step}(p, d) = \arg\min_{x \in X} \|x - (p - H^{-1} d)\|_H

  Args:
    matrix: :math:`H`, positive definite: a number (a multiple of the identity), a vector (a
      diagonal) or a symmetric matrix, over all parameters in the order of
      `jax.flatten_util.ravel_pytree`.
    projection: the domain :math:`X`; None is the whole space. A start outside counts as the
      nearest point inside.

  Raises:
    ValueError: `matrix` is not positive definite or, from the functions, its size is not that
      of the parameters.
    TypeError: `projection` is not a Projection.

  Cost: a matrix takes `O(d^2)` a step, and one with a domain a search for each step that
    leaves it (`nearest_in_norm`).

  References:
    Baseline; Nemirovski, Yudin, "Problem Complexity and Method Efficiency in
      Optimization", 1983

  Example:
    >>> import jax.numpy as jnp
    >>> mirror = mahalanobis([1.0, 4.0])
    >>> print(mirror.step(jnp.zeros(2), jnp.array([-1.0, -1.0])))
    [1.   0.25]
  """
  values = np.asarray(matrix, np.float64)
  eigenvalues = _eigenvalues(values)
  nearest = _nearest(projection)
  is_number = values.ndim == 0

  def applied(power, tree):
    """H^power times a tree."""
    vector, unravel = jax.flatten_util.ravel_pytree(tree)
    if not is_number and len(values) != vector.size:
      raise ValueError(f"matrix must be of the {vector.size} parameters, got {values.shape}")
    if values.ndim < 2:
      return unravel(vector * jnp.asarray(values**power, vector.dtype))
    used = values if power == 1 else np.linalg.inv(values)
    return unravel(jnp.matmul(jnp.asarray(used, vector.dtype), vector, precision="highest"))

  def inside(tree):
    if projection is None or is_number:
      return nearest(tree)
    unravel = jax.flatten_util.ravel_pytree(tree)[1]
    product = lambda v: jax.flatten_util.ravel_pytree(applied(1, unravel(v)))[0]  # noqa: E731
    return nearest_in_norm(projection, tree, product, eigenvalues.min(), eigenvalues.max())

  def dual_norm(direction):
    size = norm(direction)
    unit = jax.tree.map(lambda d: reduce.ratio(d, size), direction)
    return size * jnp.sqrt(optax.tree.vdot(unit, applied(-1, unit)))

  return MirrorMap(
    point=lambda params: inside(jax.tree.map(wide, params)),
    step=lambda point, d: inside(jax.tree.map(jnp.subtract, point, applied(-1, d))),
    params=lambda point: point,
    norm=dual_norm,
  )


def p_norm(p: float, radius: float | None = None) -> MirrorMap:
  r"""Steps between gradient descent and multiplicative ones: :math:`\psi(x) = \tfrac12 \|x\|_p^2`.

  .. math::
    \nabla\psi(x)_i = \|x\|_p^{2-p} |x_i|^{p-1} \mathrm{sign}(x_i), \qquad
    \nabla\psi(\mathrm{step}(p, d)) = c \, (\nabla\psi(p) - d)

  with :math:`c \le 1` the largest number for which the step stays in the ball
  :math:`\|x\|_p \le r`, over all parameters together. With :math:`p = 1 + 1 / \log d` the
  dimension enters regret bounds as its logarithm. Points are :math:`\nabla\psi(x)`.

  Args:
    p: in (1, 2]; 2 is Euclidean.
    radius: :math:`r`, above 0; None is the whole space. A start outside counts as the
      multiple of it on the ball.

  Raises:
    ValueError: an argument is out of range.

  Notes:
    :math:`\psi` is :math:`(p - 1)`-strongly convex in the p-norm; `norm` is the dual one
    divided by :math:`\sqrt{p - 1}`.

  References:
    Baseline; Gentile, "The Robustness of the p-Norm Algorithms", 2003

  Example:
    >>> import jax.numpy as jnp
    >>> mirror = p_norm(1.5)
    >>> print(jnp.round(mirror.params(mirror.step(jnp.zeros(2), -jnp.array([2.0, 1.0]))), 4))
    [1.923  0.4807]
  """
  check.above("p", p, 1)
  check.between("p", p, 1, 2)
  if radius is not None:
    check.above("radius", radius, 0)
  q = p / (p - 1)

  def gradient_of(power, tree):
    """The gradient of half the squared norm with that power."""
    size = _power_norm(power, tree)

    def leaf(x):
      share = reduce.ratio(x, size)
      return (size * jnp.sign(share) * jnp.abs(share) ** (power - 1)).astype(x.dtype)

    return jax.tree.map(leaf, tree)

  def inside(dual):
    if radius is None:
      return dual
    factor = jnp.minimum(1, reduce.ratio(radius, _power_norm(q, dual)))
    factor = jnp.where(_power_norm(q, dual) > 0, factor, 1)
    return jax.tree.map(lambda d: (factor * d).astype(d.dtype), dual)

  return MirrorMap(
    point=lambda params: inside(gradient_of(p, jax.tree.map(wide, params))),
    step=lambda point, direction: inside(jax.tree.map(jnp.subtract, point, direction)),
    params=lambda point: gradient_of(q, point),
    norm=lambda direction: _power_norm(q, direction) / (p - 1) ** 0.5,
  )


def entropy() -> MirrorMap:
  r"""Multiplicative steps on the simplex: :math:`\psi(x) = \sum_i x_i \log x_i`.

  .. math::
    \mathrm{step}(p, d)_i = p_i e^{-d_i} / \sum_j p_j e^{-d_j}

  The last axis of every leaf is one distribution (a scalar is the distribution on a
  single outcome). Points are log-probabilities, so that a weight which underflows in the
  parameters can still come back. `norm` adds up the squares of the rows' largest entries.

  Raises:
    ValueError: from `point`, when concrete parameters are not all positive. Under `jit`,
      where values cannot be seen, such a start gives NaN.

  References:
    Baseline; Kivinen, Warmuth, "Exponentiated Gradient versus Gradient Descent for Linear
      Predictors", 1997

  Example:
    >>> import jax.numpy as jnp
    >>> mirror = entropy()
    >>> point = mirror.point(jnp.array([0.5, 0.5]))
    >>> print(mirror.params(mirror.step(point, jnp.log(jnp.array([3.0, 1.0])))))
    [0.25 0.75]
  """

  def point(params):
    for leaf in jax.tree.leaves(params):
      _check_positive(leaf)
    return jax.tree.map(lambda x: _log_normalised(jnp.log(wide(x))), params)

  def step(point, direction):
    return jax.tree.map(lambda y, d: _log_normalised(y - d), point, direction)

  def dual_norm(direction):
    of_rows = jax.tree.map(
      lambda d: jnp.max(jnp.abs(d), axis=-1 if d.ndim else None, initial=0), direction
    )
    return norm(of_rows)

  return MirrorMap(point, step, lambda point: jax.tree.map(jnp.exp, point), dual_norm)


def _nearest(projection: Projection | None) -> Callable[[Any], Any]:
  if projection is None:
    return lambda tree: tree
  check.record("projection", projection, Projection)
  return projection.nearest


def _eigenvalues(matrix: np.ndarray) -> np.ndarray:
  """Those of a number, a diagonal or a matrix; ValueError unless all are above 0."""
  if matrix.ndim == 2 and (len(matrix) != len(matrix.T) or not np.allclose(matrix, matrix.T)):
    raise ValueError(f"matrix must be symmetric, got {matrix}")
  if matrix.ndim > 2:
    raise ValueError(f"matrix must be a number, a vector or a matrix, got shape {matrix.shape}")
  eigenvalues = np.linalg.eigvalsh(matrix) if matrix.ndim == 2 else np.atleast_1d(matrix)
  if not np.all(eigenvalues > 0):
    raise ValueError(f"matrix must be positive definite, got eigenvalues {eigenvalues}")
  return eigenvalues


def _power_norm(power: float, tree: Any) -> jax.Array:
  """The norm of all entries with that power, which can neither overflow nor underflow."""
  if not jax.tree.leaves(tree):
    return jnp.zeros(())
  largest = optax.tree.norm(tree, ord=jnp.inf)
  unit = jnp.where(largest > 0, largest, 1)
  shares = jax.tree.map(lambda x: jnp.sum((jnp.abs(x) / unit) ** power), tree)
  return largest * optax.tree.sum(shares) ** (1 / power)


def _log_normalised(log_weights: jax.Array) -> jax.Array:
  axis = -1 if log_weights.ndim else None
  return jax.nn.log_softmax(log_weights, axis=axis) if log_weights.size else log_weights


def _check_positive(x: Any) -> None:
  if not isinstance(x, jax.core.Tracer) and not np.all(np.asarray(x) > 0):
    raise ValueError(f"params of the entropy map must be positive, got a minimum of {np.min(x)}")
