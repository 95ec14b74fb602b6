"""Dual averaging: one step from the start, along the sum of all gradients."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxrl import check

from ._mirror import at, moves, scaled, wide
from .mirror_maps import MirrorMap, euclidean


class DualAveragingState(NamedTuple):
  """State of `dual_averaging`: the start in the map's coordinates, and the sum of all gradients."""

  count: jax.typing.ArrayLike
  start: Any
  summed: Any


def dual_averaging(
  learning_rate: float | optax.Schedule, mirror: MirrorMap | None = None
) -> optax.GradientTransformationExtraArgs:
  r"""Lazy mirror descent: the minimiser of all gradients so far and a pull to the start.

  .. math::
    x_{t+1} = \arg\min_{x \in X} \; \eta_t \sum_{s \le t} \langle g_s, x \rangle + B_\psi(x, x_1)

  Gradients are summed outside of the domain, and the domain is entered anew in each step. It
  is follow-the-regularized-leader, and with a decreasing :math:`\eta_t` all gradients count
  the same. It is a whole recipe: what follows it in a chain would move the parameters off
  what the state says they are.

  Args:
    learning_rate: :math:`\eta`, at least 0, or a schedule of the step count: round t, counted
      from 1, uses its value at count t - 1. The theory has :math:`\eta_t \propto
      1 / \sqrt t`.
    mirror: geometry and domain: `euclidean()` (the default), `entropy()`, `p_norm(...)` or
      `mahalanobis(...)`.

  Returns:
    A gradient transformation whose `update` needs `params`.

  Raises:
    ValueError: the learning rate is negative, the start lies outside the map's domain, or
      `update` was called without `params`.
    TypeError: `mirror` is not a MirrorMap.

  Cost: no gradient evaluation; 8 bytes a parameter.

  Notes:
    The survey minimises :math:`\psi` and starts at its minimiser, where the two are the same;
    here any start is the centre. Without a domain and with a constant step it is
    `mirror_descent`; on the simplex with `entropy()`, too.

  References:
    [271] Bubeck, "Convex Optimization: Algorithms and Complexity", 2015, arXiv:1405.4980

  Example:
    >>> import jax.numpy as jnp
    >>> from optimizers.mirror_maps import euclidean
    >>> from optimizers.projections import box
    >>> optimizer = dual_averaging(1.0, euclidean(box(-1.0, 1.0)))
    >>> x = jnp.array(0.0)
    >>> updates, state = optimizer.update(jnp.array(-3.0), optimizer.init(x), x)
    >>> updates, state = optimizer.update(jnp.array(1.5), state, x + updates)
    >>> float(updates)  # the sum of -1.5 leads as far as the -3 did, to the boundary
    0.0
  """
  check.at_least("learning_rate", learning_rate, 0)
  mirror = euclidean() if mirror is None else mirror
  check.record("mirror", mirror, MirrorMap)

  def init_fn(params):
    summed = jax.tree.map(lambda x: jnp.zeros_like(wide(x)), params)
    return DualAveragingState(jnp.zeros([], jnp.int32), mirror.point(params), summed)

  def update_fn(updates, state, params=None, **extra_args):
    del extra_args
    check.params("dual_averaging", params)
    summed = jax.tree.map(lambda s, g: s + g.astype(s.dtype), state.summed, updates)
    point = mirror.step(state.start, scaled(at(learning_rate, state.count), summed))
    new_state = DualAveragingState(optax.safe_increment(state.count), state.start, summed)
    return moves(mirror.params(point), params), new_state

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)
