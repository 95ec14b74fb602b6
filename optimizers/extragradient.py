"""Extragradient, or mirror prox: step by the gradient that a first step leads to."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxrl import check

from ._mirror import at, moves, scaled, wide
from .mirror_maps import MirrorMap, euclidean


class ExtragradientState(NamedTuple):
  """State of `extragradient`: the parameters in the map's coordinates, and the average of y.

  `average` is None where it is not kept.
  """

  count: jax.typing.ArrayLike
  point: Any
  average: Any
  weight: jax.Array


def extragradient(
  learning_rate: float | optax.Schedule,
  mirror: MirrorMap | None = None,
  *,
  average: bool = True,
) -> optax.GradientTransformationExtraArgs:
  r"""Mirror prox: a trial step, and a step from the same point by the gradient found there.

  With :math:`F` the gradient of this step's loss, :math:`g_t = F(x_t)` the incoming one,

  .. math::
    y_t &= \arg\min_{x \in X} \; \eta_t \langle g_t, x \rangle + B_\psi(x, x_t) \\
    x_{t+1} &= \arg\min_{x \in X} \; \eta_t \langle F(y_t), x \rangle + B_\psi(x, x_t)

  The answer, `eval_params`, is the average of :math:`y_t` with weights :math:`\eta_t`. Unlike
  gradient steps it converges where :math:`F` is monotone but no gradient, as in games of two
  players. It is a whole recipe: what follows it in a chain would move the parameters off what
  the state says they are.

  Args:
    learning_rate: :math:`\eta`, at least 0, or a schedule of the step count. The theory has
      :math:`1 / \sqrt 2 L` where :math:`F` is L-Lipschitz.
    mirror: geometry and domain: `euclidean()` (the default), `entropy()`, `p_norm(...)` or
      `mahalanobis(...)`.
    average: whether to keep the average; without it the answer is `params`.

  Returns:
    A gradient transformation whose `update` needs `params` and `value_fn`, the loss of this
    step's batch as a function of the parameters.

  Raises:
    ValueError: the learning rate is negative, the start lies outside the map's domain, or
      `update` was called without `params`.
    TypeError: `mirror` is not a MirrorMap, or `update` was called without `value_fn`.

  Cost: one gradient evaluation beyond the incoming one; 8 bytes a parameter, 4 without the
    average.

  Notes:
    In a game, :math:`F` stacks each player's gradient of its own loss. It is the gradient of
    the sum of all losses with the others' parameters under `jax.lax.stop_gradient`: pass that
    as `value_fn`.
    Averaging suits convex losses and games; networks are better off without. Along a curvature
    :math:`\lambda` a step multiplies by :math:`1 - \eta \lambda + \eta^2 \lambda^2`: it
    diverges from :math:`\eta = 1 / \lambda` on, gradient descent only from twice that.

  References:
    [271] Bubeck, "Convex Optimization: Algorithms and Complexity", 2015, arXiv:1405.4980
    Baseline: Nemirovski, "Prox-Method with Rate of Convergence O(1/t) for Variational
      Inequalities with Lipschitz Continuous Monotone Operators and Smooth Convex-Concave
      Saddle Point Problems", 2004

  Example:
    >>> import jax, jax.numpy as jnp
    >>> def game(z):  # min over x, max over y of x * y
    ...   x, y = z
    ...   return x * jax.lax.stop_gradient(y) - jax.lax.stop_gradient(x) * y
    >>> optimizer = extragradient(0.5)
    >>> z = jnp.array([1.0, 0.0])
    >>> updates, _ = optimizer.update(jax.grad(game)(z), optimizer.init(z), z, value_fn=game)
    >>> print(z + updates)  # y goes to (1, 0.5), where F is (0.5, -1)
    [0.75 0.5 ]
  """
  check.at_least("learning_rate", learning_rate, 0)
  mirror = euclidean() if mirror is None else mirror
  check.record("mirror", mirror, MirrorMap)

  def init_fn(params):
    kept = jax.tree.map(wide, params) if average else None
    count = jnp.zeros([], jnp.int32)
    return ExtragradientState(count, mirror.point(params), kept, jnp.zeros(()))

  def update_fn(updates, state, params=None, *, value_fn=None, **extra_args):
    del extra_args
    check.params("extragradient", params)
    value_fn = check.value_fn("extragradient", value_fn)
    rate = at(learning_rate, state.count)
    trial = mirror.params(mirror.step(state.point, scaled(rate, updates)))
    gradient = jax.grad(value_fn)(jax.tree.map(lambda x, p: x.astype(p.dtype), trial, params))
    point = mirror.step(state.point, scaled(rate, gradient))

    weight = state.weight + rate
    share = jnp.where(weight > 0, rate / jnp.where(weight > 0, weight, 1), 0)
    kept = optax.incremental_update(trial, state.average, share) if average else None
    new_state = ExtragradientState(optax.safe_increment(state.count), point, kept, weight)
    return moves(mirror.params(point), params), new_state

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def eval_params(state: ExtragradientState, params: Any) -> Any:
  """The average of the trial points; the start before the first step."""
  if state.average is None:
    return params
  return jax.tree.map(lambda a, p: a.astype(p.dtype), state.average, params)
