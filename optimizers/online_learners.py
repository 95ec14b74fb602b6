"""Online learners of a direction in a ball, for `online_to_nonconvex` and by themselves."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxrl import check

from ._online import clipped, norm, rate_at, root_of_squares, stepped, towards
from ._sharpness import wide


class OptimisticOgdState(NamedTuple):
  """State of `optimistic_ogd`: the count of updates and the point without the hint."""

  count: jax.typing.ArrayLike
  secondary: Any


class ScaleFreeOgdState(NamedTuple):
  """State of `scale_free_ogd`: the root of the sum of all gradients' squared norms."""

  count: jax.typing.ArrayLike
  gradients: jax.Array


def projected_ogd(
  learning_rate: float | optax.Schedule, radius: float
) -> optax.GradientTransformationExtraArgs:
  r"""Online gradient descent in a ball around the origin.

  .. math::
    w_{t+1} = \Pi_R(w_t - \eta g_t), \qquad \Pi_R(w) = w \min(1, R / \|w\|)

  Args:
    learning_rate: :math:`\eta`, at least 0, or a schedule of the step count.
    radius: :math:`R`, above 0.

  Returns:
    A recipe whose `update` needs `params`.

  Raises:
    ValueError: an argument is out of range, or `update` was called without `params`.

  Cost: no gradient evaluation; 4 bytes in all.

  References:
    Baseline: Zinkevich, "Online Convex Programming and Generalized Infinitesimal Gradient
      Ascent", 2003

  Example:
    >>> import jax.numpy as jnp
    >>> optimizer, w = projected_ogd(1.0, radius=5.0), jnp.zeros(2)
    >>> updates, _ = optimizer.update(jnp.array([-6.0, 8.0]), optimizer.init(w), w)
    >>> print(w + updates)
    [ 3. -4.]
  """
  _check(learning_rate, radius)

  def init_fn(params):
    del params
    return optax.ScaleByScheduleState(jnp.zeros([], jnp.int32))

  def update_fn(updates, state, params=None, **extra_args):
    del extra_args
    check.params("projected_ogd", params)
    point = clipped(
      stepped(wide(params), rate_at(learning_rate, state.count), wide(updates)), radius
    )
    count = optax.safe_increment(state.count)
    return towards(point, params), optax.ScaleByScheduleState(count)

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def optimistic_ogd(
  learning_rate: float | optax.Schedule, radius: float
) -> optax.GradientTransformationExtraArgs:
  r"""Optimistic online gradient descent in a ball, with the last gradient as the hint.

  .. math::
    \hat w_{t+1} = \Pi_R(\hat w_t - \eta g_t), \qquad
    w_{t+1} = \Pi_R(\hat w_{t+1} - \eta g_t)

  Args:
    learning_rate: :math:`\eta`, at least 0, or a schedule of the step count.
    radius: :math:`R` of the ball around the origin, above 0.

  Returns:
    A recipe whose `update` needs `params`.

  Raises:
    ValueError: an argument is out of range, or `update` was called without `params`.

  Cost: no gradient evaluation; 4 bytes a parameter.

  References:
    Baseline: Rakhlin, Sridharan, "Online Learning with Predictable Sequences", 2013,
      arXiv:1208.3728

  Example:
    >>> import jax.numpy as jnp
    >>> optimizer, w = optimistic_ogd(1.0, radius=5.0), jnp.array(0.0)
    >>> updates, state = optimizer.update(jnp.array(3.0), optimizer.init(w), w)
    >>> float(state.secondary), float(w + updates)  # -3 - 3 lies outside
    (-3.0, -5.0)
  """
  _check(learning_rate, radius)

  def init_fn(params):
    return OptimisticOgdState(jnp.zeros([], jnp.int32), clipped(wide(params), radius))

  def update_fn(updates, state, params=None, **extra_args):
    del extra_args
    check.params("optimistic_ogd", params)
    rate, gradient = rate_at(learning_rate, state.count), wide(updates)
    secondary = clipped(stepped(state.secondary, rate, gradient), radius)
    point = clipped(stepped(secondary, rate, gradient), radius)
    count = optax.safe_increment(state.count)
    return towards(point, params), OptimisticOgdState(count, secondary)

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def scale_free_ogd(
  learning_rate: float | optax.Schedule = 1.0, *, radius: float
) -> optax.GradientTransformationExtraArgs:
  r"""Online gradient descent in a ball, whose steps follow the gradients' size.

  .. math::
    w_{t+1} = \Pi_R\Big( w_t - \frac{\sqrt 2 c R}{\sqrt{\sum_{s \le t} \|g_s\|^2}} g_t \Big)

  Multiplying all gradients by a constant changes nothing.

  Args:
    learning_rate: the factor :math:`c`, at least 0, or a schedule of the step count; 1 is best
      in theory.
    radius: :math:`R` of the ball around the origin, above 0.

  Returns:
    A recipe whose `update` needs `params`.

  Raises:
    ValueError: an argument is out of range, or `update` was called without `params`.

  Cost: no gradient evaluation; 8 bytes in all.

  References:
    Baseline: Orabona, Pal, "Scale-Free Online Learning", 2016, arXiv:1601.01974

  Example:
    >>> import jax.numpy as jnp
    >>> optimizer, w = scale_free_ogd(0.5**0.5, radius=5.0), jnp.zeros(2)
    >>> updates, _ = optimizer.update(jnp.array([-600.0, 800.0]), optimizer.init(w), w)
    >>> print(jnp.round(w + updates, 4))
    [ 3. -4.]
  """
  _check(learning_rate, radius)

  def init_fn(params):
    nothing = jnp.zeros([], norm(wide(params)).dtype)
    return ScaleFreeOgdState(jnp.zeros([], jnp.int32), nothing)

  def update_fn(updates, state, params=None, **extra_args):
    del extra_args
    check.params("scale_free_ogd", params)
    gradients = root_of_squares(state.gradients, norm(wide(updates)))
    unit = jnp.where(gradients > 0, gradients, 1)
    direction = jax.tree.map(lambda g: g / unit, wide(updates))
    rate = jnp.sqrt(2) * radius * rate_at(learning_rate, state.count)
    point = clipped(stepped(wide(params), rate, direction), radius)
    count = optax.safe_increment(state.count)
    return towards(point, params), ScaleFreeOgdState(count, gradients)

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _check(learning_rate: Any, radius: Any) -> None:
  check.at_least("learning_rate", learning_rate, 0)
  check.above("radius", radius, 0)
