"""Mirror maps: the geometry in which mirror descent and its relatives take their steps."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np


class MirrorMap(NamedTuple):
  r"""The three functions that mirror descent needs of a map :math:`\psi`.

  Points are kept in whatever coordinates make steps exact; all are float32 or wider.

  Attributes:
    point: `point(params) -> point`, the coordinates of a point of the domain.
    step: `step(point, direction) -> point`, the minimiser over the domain of
      :math:`\langle d, x \rangle + B_\psi(x, p)`.
    params: `params(point)`, the parameters that the coordinates stand for.
  """

  point: Callable[[Any], Any]
  step: Callable[[Any, Any], Any]
  params: Callable[[Any], Any]


def euclidean() -> MirrorMap:
  r"""Gradient steps in the whole space: :math:`\psi(x) = \tfrac12 \|x\|_2^2`.

  .. math::
    \mathrm{step}(p, d) = p - d

  References:
    Baseline; Nemirovski, Yudin, "Problem Complexity and Method Efficiency in
      Optimization", 1983

  Example:
    >>> import jax.numpy as jnp
    >>> mirror = euclidean()
    >>> float(mirror.step(mirror.point(jnp.array(1.0)), 0.25))
    0.75
  """
  return MirrorMap(
    point=lambda params: jax.tree.map(_widen, params),
    step=lambda point, direction: jax.tree.map(jnp.subtract, point, direction),
    params=lambda point: point,
  )


def entropy() -> MirrorMap:
  r"""Multiplicative steps on the simplex: :math:`\psi(x) = \sum_i x_i \log x_i`.

  .. math::
    \mathrm{step}(p, d)_i = p_i e^{-d_i} / \sum_j p_j e^{-d_j}

  The last axis of every leaf is one distribution (a scalar is the distribution on a
  single outcome). Points are log-probabilities, so that a weight which underflows in the
  parameters can still come back.

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
    return jax.tree.map(lambda x: _log_normalised(jnp.log(_widen(x))), params)

  def step(point, direction):
    return jax.tree.map(lambda y, d: _log_normalised(y - d), point, direction)

  return MirrorMap(point, step, params=lambda point: jax.tree.map(jnp.exp, point))


def _widen(x: Any) -> jax.Array:
  return jnp.asarray(x, jnp.promote_types(jnp.result_type(x), jnp.float32))


def _log_normalised(log_weights: jax.Array) -> jax.Array:
  axis = -1 if log_weights.ndim else None
  return jax.nn.log_softmax(log_weights, axis=axis) if log_weights.size else log_weights


def _check_positive(x: Any) -> None:
  if not isinstance(x, jax.core.Tracer) and not np.all(np.asarray(x) > 0):
    raise ValueError(f"params of the entropy map must be positive, got a minimum of {np.min(x)}")
