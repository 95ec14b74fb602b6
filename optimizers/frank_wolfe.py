"""Frank-Wolfe: move towards the lowest point of the domain along the gradient."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxrl import check, reduce

from ._mirror import at, norm, scaled, wide
from .projections import Projection


class FrankWolfeState(NamedTuple):
  """State of `frank_wolfe`: the count, and `gap`, which bounds how far the loss is above its least.

  The gap is that of the last step's start.
  """

  count: jax.typing.ArrayLike
  metrics: dict[str, jax.Array]


def frank_wolfe(
  learning_rate: float | optax.Schedule | None = None,
  *,
  domain: Projection,
  smoothness: float | None = None,
) -> optax.GradientTransformationExtraArgs:
  r"""Frank-Wolfe, or conditional gradients: no projection, and every point a mix of vertices.

  .. math::
    s_t = \arg\min_{x \in X} \langle g_t, x \rangle, \qquad
    x_{t+1} = x_t + \gamma_t (s_t - x_t)

  The parameters have to start in the domain; they then stay in it. For a convex loss the gap
  :math:`\langle g_t, x_t - s_t \rangle` bounds how far it is above its least value. It is a
  whole recipe: what follows it in a chain may leave the domain.

  Args:
    learning_rate: :math:`\gamma`, in [0, 1], or a schedule of the step count; None takes
      :math:`2 / (t + 2)` with t from 0, or the short step if `smoothness` is given.
    domain: a record with `lowest`, its linear minimisation oracle: `l1_ball(...)`,
      `l2_ball(...)`, `box(...)` or `simplex()`.
    smoothness: :math:`L`, above 0, for the short step
      :math:`\gamma_t = \min\{1, \mathrm{gap}_t / (L \|s_t - x_t\|^2)\}`.

  Returns:
    A gradient transformation whose `update` needs `params`.

  Raises:
    ValueError: an argument is out of range, both `learning_rate` and `smoothness` are given, or
      `update` was called without `params`.
    TypeError: `domain` is not a Projection, or has no lowest point.

  Cost: no gradient evaluation; 8 bytes of state in all, and a temporary copy of the parameters.

  Notes:
    With the default the first step goes all the way to a vertex, whatever the start. Noisy
    gradients don't average out: the vertex of a noisy gradient is far from that of its mean.

  References:
    [271] Bubeck, "Convex Optimization: Algorithms and Complexity", 2015, arXiv:1405.4980
    Baseline: Jaggi, "Revisiting Frank-Wolfe: Projection-Free Sparse Convex Optimization", 2013

  Example:
    >>> import jax.numpy as jnp
    >>> from optimizers.projections import l1_ball
    >>> optimizer = frank_wolfe(0.5, domain=l1_ball(1.0))
    >>> x = jnp.array([0.5, 0.0])
    >>> updates, state = optimizer.update(jnp.array([1.0, 3.0]), optimizer.init(x), x)
    >>> print(x + updates, state.metrics["gap"])  # half way to (0, -1)
    [ 0.25 -0.5 ] 3.5
  """
  check.between("learning_rate", learning_rate, 0, 1)
  check.record("domain", domain, Projection)
  if domain.lowest is None:
    raise TypeError("domain must have a lowest point along every direction: it must be bounded")
  if smoothness is not None:
    check.above("smoothness", smoothness, 0)
    if learning_rate is not None:
      raise ValueError(
        f"smoothness must be None where learning_rate={learning_rate!r}, got {smoothness!r}"
      )
  lowest = domain.lowest

  def rate(count, gap, size):
    if smoothness is not None:  # gap / size / size: squares would overflow
      return jnp.minimum(1, reduce.ratio(reduce.ratio(gap, size), smoothness * size))
    return 2.0 / (count + 2.0) if learning_rate is None else at(learning_rate, count)

  def init_fn(params):
    del params
    return FrankWolfeState(jnp.zeros([], jnp.int32), {"gap": jnp.zeros((), jnp.float32)})

  def update_fn(updates, state, params=None, **extra_args):
    del extra_args
    check.params("frank_wolfe", params)
    gradient = jax.tree.map(wide, updates)
    direction = optax.tree.sub(lowest(gradient), jax.tree.map(wide, params))
    gap = jnp.negative(optax.tree.vdot(gradient, direction))
    step = scaled(rate(state.count, gap, norm(direction)), direction)
    updates = jax.tree.map(lambda d, p: d.astype(p.dtype), step, params)
    metrics = {"gap": jnp.asarray(gap, jnp.float32)}
    return updates, FrankWolfeState(optax.safe_increment(state.count), metrics)

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)
