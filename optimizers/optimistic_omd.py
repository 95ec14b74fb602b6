"""Optimistic online mirror descent: step from a lagging point, with the last gradient as hint."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxrl import check

from .mirror_maps import MirrorMap, euclidean


class OptimisticOmdState(NamedTuple):
  """State of `optimistic_omd`: the secondary point, in the mirror map's coordinates."""

  count: jax.typing.ArrayLike
  secondary: Any


def optimistic_omd(
  learning_rate: float | optax.Schedule, mirror: MirrorMap | None = None
) -> optax.GradientTransformationExtraArgs:
  r"""Optimistic online mirror descent with the last gradient as the hint.

  The parameters are the decision :math:`x_t`, at which :math:`g_t` was taken. With the
  mirror map's divergence :math:`B_\psi` and :math:`\hat x_1 = x_1`,

  .. math::
    \hat x_{t+1} &= \arg\min_x \; \eta_t \langle g_t, x \rangle + B_\psi(x, \hat x_t) \\
    x_{t+1} &= \arg\min_x \; \eta_{t+1} \langle g_t, x \rangle + B_\psi(x, \hat x_{t+1})

  It is a whole recipe: what follows it in a chain would move the decision off the
  trajectory of the theory.

  Args:
    learning_rate: :math:`\eta`, at least 0, or a schedule of the step count: round t,
      counted from 1, uses its values at counts t - 1 and t.
    mirror: geometry and domain: `euclidean()` (the default) or `entropy()`.

  Returns:
    A gradient transformation whose `update` needs `params`.

  Raises:
    ValueError: the learning rate is negative, the start lies outside the map's domain, or
      `update` was called without `params`.
    TypeError: `mirror` is not a MirrorMap.

  Cost: one gradient a round; 4 bytes a parameter.

  Notes:
    The hint before the first round is 0. `optax.optimistic_gradient_descent` takes the
    first gradient instead, so that the first updates differ; the Euclidean form with a
    constant step equals it from there on: :math:`x_{t+1} = x_t - 2 \eta g_t + \eta
    g_{t-1}`.

  References:
    [11] Chen, Zhang, Tu, Zhao, Zhang, "Optimistic Online Mirror Descent for Bridging
      Stochastic and Adversarial Online Convex Optimization", 2024, arXiv:2302.04552

  Example:
    >>> import jax.numpy as jnp
    >>> optimizer = optimistic_omd(0.25)
    >>> x = jnp.array(1.0)
    >>> updates, state = optimizer.update(jnp.array(2.0), optimizer.init(x), x)
    >>> float(updates)  # -2 * 0.25 * 2
    -1.0
  """
  check.at_least("learning_rate", learning_rate, 0)
  mirror = euclidean() if mirror is None else mirror
  check.record("mirror", mirror, MirrorMap)

  def rate(count):
    return learning_rate(count) if callable(learning_rate) else learning_rate

  def init_fn(params):
    return OptimisticOmdState(jnp.zeros([], jnp.int32), mirror.point(params))

  def update_fn(updates, state, params=None, **extra_args):
    del extra_args
    check.params("optimistic_omd", params)
    count = optax.safe_increment(state.count)
    secondary = mirror.step(state.secondary, _scaled(rate(state.count), updates))
    decision = mirror.params(mirror.step(secondary, _scaled(rate(count), updates)))
    updates = jax.tree.map(lambda new, old: (new - old).astype(old.dtype), decision, params)
    return updates, OptimisticOmdState(count, secondary)

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _scaled(rate: jax.typing.ArrayLike, gradient: Any) -> Any:
  return jax.tree.map(lambda g: rate * g.astype(jnp.promote_types(g.dtype, jnp.float32)), gradient)
