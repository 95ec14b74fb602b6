"""Discriminative Bayesian filtering: Newton steps from noisy Hessians, with a memory."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from jaxrl import check

from . import _vectors

_LEAST = 1e-12  # Below which no eigenvalue of a Hessian is.
_MARGIN = 1e-6
_ARMIJO, _HALVINGS = 0.95, 4


class DbfNewtonState(NamedTuple):
  """State of `dbf_newton`: the filter's mean `[d]` and covariance `[d, d]`."""

  count: jax.typing.ArrayLike
  mean: jax.Array
  covariance: jax.Array


def dbf_newton(
  learning_rate: float | optax.Schedule = 1.0,
  *,
  alpha: float = 0.9,
  beta: float = 0.2,
  line_search: bool = True,
  max_parameters: int = 2000,
) -> optax.GradientTransformationExtraArgs:
  r"""The stochastic Newton method with the memory of a discriminative Kalman filter.

  The gradients :math:`g_t` and Hessians :math:`Q_t` of the batches are measurements of one that
  drifts, :math:`A = \alpha I`, :math:`\Gamma = \beta I`,
  :math:`S = \tfrac{\beta}{1 - \alpha^2} I`. The filter starts from :math:`\mu = g_1`,
  :math:`\Sigma = Q_1`; then

  .. math::
    \nu = \alpha \mu_{t-1}, \qquad M = \alpha^2 \Sigma_{t-1} + \beta I, \qquad
    \Sigma_t = (M^{-1} + Q_t^{-1} - S^{-1})^{-1}, \\
    \mu_t = \Sigma_t (M^{-1} \nu + Q_t^{-1} g_t), \qquad
    d_t = -\Sigma_t^{-1} \mu_t
      = \alpha (\alpha^2 \Sigma_{t-1} + \beta I)^{-1} \Sigma_{t-1} d_{t-1} - Q_t^{-1} g_t,

  which is Newton's step with a matrix for a momentum. Where :math:`Q_t^{-1} - S^{-1}` is not
  positive definite, :math:`(Q_t^{-1} + S^{-1})^{-1}` takes the place of :math:`Q_t`. The line
  search takes the first of :math:`a = \eta, \eta / 2, \ldots, \eta / 16` with
  :math:`F(w + a d) - F(w) \le 0.95 \, a \, g^\top d`, or the last.

  Args:
    learning_rate: :math:`\eta`, at least 0, or a schedule of the step count.
    alpha: :math:`\alpha`, in [0, 1).
    beta: :math:`\beta`, above 0, in the unit of the Hessian.
    line_search: whether to search; else every step has the size :math:`\eta`.
    max_parameters: beyond which `init` refuses.

  Returns:
    A recipe whose `update` needs `params` and `value_fn`.

  Raises:
    ValueError: an argument is out of range, there are more than `max_parameters`, or `update`
      was called without `params`.
    TypeError: `update` was called without `value_fn`.

  Cost: the whole Hessian, as much as d gradients; `O(d^3)` for factors and eigenvalues; six
  evaluations of the loss with the line search; `4 * d` bytes a parameter, six times that while
  it runs.

  Notes:
    It is meant for means of log-convex functions, whose Hessians are positive definite:
    eigenvalues below 1e-12 count as 1e-12 here, and Newton's step leaves directions alone whose
    curvature is below d units of rounding of the largest, where gradients are rounding, too. The
    published code inverts what comes. It tests for definiteness with a margin of 1e-6, and adds
    1e-12 to :math:`\Sigma`, which the step here does not need to invert.

  References:
    [383] Burkhart, "Discriminative Bayesian Filtering Lends Momentum to the Stochastic Newton
      Method for Minimizing Log-Convex Functions", 2021, arXiv:2104.12949

  Example:
    >>> import jax, jax.numpy as jnp
    >>> loss = lambda w: 0.5 * jnp.sum(jnp.array([100.0, 1.0]) * w**2)
    >>> optimizer = dbf_newton(line_search=False)
    >>> w = jnp.array([1.0, 1.0])
    >>> updates, _ = optimizer.update(
    ...   jax.grad(loss)(w), optimizer.init(w), w, value_fn=loss)
    >>> print(updates)  # the first is Newton's step
    [-1. -1.]
  """
  check.at_least("learning_rate", learning_rate, 0)
  check.below("alpha", alpha, 0, 1)
  check.above("beta", beta, 0)
  check.whole("max_parameters", max_parameters, 1)

  def init_fn(params):
    flat, _ = ravel_pytree(_vectors.wide(params))
    if flat.size > max_parameters:
      raise ValueError(
        f"dbf_newton keeps a matrix of the parameters squared: max_parameters={max_parameters}, "
        f"got {flat.size}; newton_cg and saddle_free_newton keep none"
      )
    return DbfNewtonState(
      jnp.zeros([], jnp.int32), jnp.zeros_like(flat), jnp.zeros((flat.size, flat.size), flat.dtype)
    )

  def update_fn(updates, state, params=None, *, value_fn=None, **extra_args):
    del extra_args
    check.params("dbf_newton", params)
    value_fn = check.value_fn("dbf_newton", value_fn)
    count = optax.safe_increment(state.count)
    flat, unravel = ravel_pytree(_vectors.wide(params))
    at = jnp.asarray(flat)
    if at.size == 0:
      return updates, state._replace(count=count)

    def loss(flat):
      return value_fn(unravel(flat))

    gradient = jnp.asarray(ravel_pytree(_vectors.wide(updates))[0])
    direction, mean, covariance = _filtered(state, gradient, jax.hessian(loss)(at), alpha, beta)
    rate: Any = learning_rate(state.count) if callable(learning_rate) else learning_rate
    if line_search:
      rate = rate * _halved(lambda a: loss(at + rate * a * direction), rate * gradient @ direction)
    updates = _vectors.like(unravel((rate * direction).astype(at.dtype)), params)
    return updates, DbfNewtonState(count, mean, covariance)

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _filtered(
  state: DbfNewtonState, gradient: jax.Array, hessian: jax.Array, alpha: Any, beta: Any
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """The direction, and the filter's mean and covariance after this measurement."""
  values, vectors = jnp.linalg.eigh((hessian + hessian.T) / 2)
  rounding = values.size * jnp.finfo(values.dtype).eps * jnp.max(jnp.abs(values))
  curved = values > rounding
  values = jnp.maximum(values, _LEAST)
  stationary = beta / (1 - alpha**2)
  sure = jnp.all(1 / values - 1 / stationary > _MARGIN)
  # Without 1 / stationary where it was added before, so that it is not taken off again.
  gained = jnp.where(sure, values * stationary / jnp.where(sure, stationary - values, 1), values)
  reciprocals = jnp.where(curved, 1 / values, 0)
  inverse = reciprocals + jnp.where(sure, 0, 1 / stationary)
  measured = (vectors * gained[None]) @ vectors.T
  newton = vectors @ (inverse * (vectors.T @ gradient))

  prior = alpha**2 * state.covariance + beta * jnp.eye(gradient.size, dtype=gradient.dtype)
  pull = newton + jnp.linalg.solve(prior, alpha * state.mean)
  # (prior^-1 + measured^-1)^-1, without an inverse of what may be singular.
  joint = prior @ jnp.linalg.solve(prior + measured, measured)
  joint = (joint + joint.T) / 2

  first = state.count == 0
  plain = vectors @ (reciprocals * (vectors.T @ gradient))
  direction = -jnp.where(first, plain, pull)
  covariance = jnp.where(first, (vectors * values[None]) @ vectors.T, joint)
  mean = jnp.where(first, gradient, joint @ pull)
  dtype = state.mean.dtype
  return direction.astype(dtype), mean.astype(dtype), covariance.astype(dtype)


def _halved(value_at: Callable[[jax.Array], jax.Array], slope: jax.Array) -> jax.Array:
  """The first of 1, 1/2, ..., 1/16 whose loss falls by what the slope promises, or the last."""
  lengths = jnp.concatenate([jnp.zeros(1), 2.0 ** -jnp.arange(_HALVINGS + 1)])
  start, *values = jax.lax.map(value_at, lengths)
  enough = jnp.stack(values) - start <= _ARMIJO * lengths[1:] * slope
  return lengths[1:][jnp.argmax(enough.at[-1].set(True))]
