"""Mirror descent: gradient steps in the geometry of the domain."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxrl import check

from ._mirror import at, moves, scaled
from .mirror_maps import MirrorMap, euclidean


class MirrorDescentState(NamedTuple):
  """State of `mirror_descent`: the parameters in the mirror map's coordinates."""

  count: jax.typing.ArrayLike
  point: Any


def mirror_descent(
  learning_rate: float | optax.Schedule, mirror: MirrorMap | None = None
) -> optax.GradientTransformationExtraArgs:
  r"""Gradient steps that are short in the divergence of a mirror map.

  .. math::
    x_{t+1} = \arg\min_{x \in X} \; \eta_t \langle g_t, x \rangle + B_\psi(x, x_t)

  With `euclidean(...)` it is projected gradient descent, with `entropy()` Hedge, also called
  exponentiated gradient. It is a whole recipe: what follows it in a chain would move the
  parameters off what the state says they are.

  Args:
    learning_rate: :math:`\eta`, at least 0, or a schedule of the step count.
    mirror: geometry and domain: `euclidean()` (the default), `entropy()`, `p_norm(...)` or
      `mahalanobis(...)`.

  Returns:
    A gradient transformation whose `update` needs `params`.

  Raises:
    ValueError: the learning rate is negative, the start lies outside the map's domain, or
      `update` was called without `params`.
    TypeError: `mirror` is not a MirrorMap.

  Cost: no gradient evaluation; 4 bytes a parameter.

  Notes:
    It goes on from where its state is, not from `params`: in the map's coordinates weights
    that underflow, and steps below the spacing of bfloat16, are not lost.

  References:
    [271] Bubeck, "Convex Optimization: Algorithms and Complexity", 2015, arXiv:1405.4980

  Example:
    >>> import jax.numpy as jnp
    >>> from optimizers.mirror_maps import entropy
    >>> optimizer = mirror_descent(1.0, entropy())
    >>> x = jnp.array([0.5, 0.5])
    >>> updates, _ = optimizer.update(jnp.log(jnp.array([3.0, 1.0])), optimizer.init(x), x)
    >>> print(x + updates)
    [0.25 0.75]
  """
  check.at_least("learning_rate", learning_rate, 0)
  mirror = euclidean() if mirror is None else mirror
  check.record("mirror", mirror, MirrorMap)

  def init_fn(params):
    return MirrorDescentState(jnp.zeros([], jnp.int32), mirror.point(params))

  def update_fn(updates, state, params=None, **extra_args):
    del extra_args
    check.params("mirror_descent", params)
    point = mirror.step(state.point, scaled(at(learning_rate, state.count), updates))
    new_state = MirrorDescentState(optax.safe_increment(state.count), point)
    return moves(mirror.params(point), params), new_state

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)
