"""Gradient regularization: a penalty on the length of the gradient, by finite differences."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxrl import check

from ._sharpness import moved, scaled_to, wide

replaces_gradient = True


class GradientRegularizationState(NamedTuple):
  """State of `gradient_regularization`."""

  count: jax.typing.ArrayLike


def gradient_regularization(
  gamma: float | optax.Schedule = 0.1,
  eps: float = 0.1,
  *,
  method: str = "forward",
  norm: str = "squared",
) -> optax.GradientTransformationExtraArgs:
  r"""Adds to the gradient that of a penalty on its own length.

  With :math:`g(w)` the gradient of this step's loss, :math:`g` the incoming one,
  :math:`L + \tfrac{\gamma}{2} \|g\|^2` is minimised (`norm="squared"`, with
  :math:`v = g`) or :math:`L + \gamma \|g\|` (`norm="norm"`, with :math:`v = g / \|g\|`):

  .. math::
    u = g + \gamma R, \qquad
    R = \begin{cases}
      (g(w + \epsilon v) - g) / \epsilon & \text{forward: ascent} \\
      (g - g(w - \epsilon v)) / \epsilon & \text{backward: descent} \\
      (g(w + \epsilon v) - g(w - \epsilon v)) / 2 \epsilon & \text{central} \\
      \nabla^2 L(w) \, v & \text{exact.}
    \end{cases}

  A forward difference of `eps=gamma` is an ascent step: :math:`u = g(w + \gamma v)`, which is
  SAM's with `norm="norm"`. It comes first in a chain.

  Args:
    gamma: strength :math:`\gamma`, at least 0, or a schedule of the step count.
    eps: step :math:`\epsilon` of the difference, above 0. `exact` does not use it.
    method: `forward`, `backward`, `central` or `exact`.
    norm: `squared` or `norm`, the penalty.

  Returns:
    A gradient transformation whose `update` needs `params` and `value_fn`, the loss of this
    step's batch as a function of the parameters.

  Raises:
    ValueError: an argument is out of range, or `update` was called without `params`.
    TypeError: `update` was called without `value_fn`.

  Cost: one gradient evaluation beyond the incoming one, two with `central`; with `exact` one
  Hessian-vector product, which differentiates one evaluation twice. 4 bytes of state in all;
  a temporary copy of the parameters.

  Notes:
    The paper finds that forward differences with a large :math:`\epsilon` generalise better
    than a small one, backward differences or the exact product: they are no approximation to
    be refined. It tunes both numbers; the defaults are ours, and so is `central`.
    One step of flooding down and one up, each of length :math:`\eta` times the gradient, move
    by :math:`-\eta^2 R` of the backward difference with :math:`\epsilon = \eta`; up and
    down, by that of the forward one.
    In float32 a difference loses its digits where :math:`\epsilon \|v\|` falls below about
    1e-4 of :math:`\|w\|`: use `exact` there. With `squared` the step grows with the
    gradient: what a gradient of huge norm gives is as huge as it says.

  References:
    [275] Karakida, Takase, Hayase, Osawa, "Understanding Gradient Regularization in Deep
      Learning: Efficient Finite-Difference Computation and Implicit Bias", 2022,
      arXiv:2210.02720

  Example:
    >>> import jax
    >>> loss = lambda w: w**2
    >>> optimizer = gradient_regularization(gamma=0.5, eps=0.25)
    >>> w = jax.numpy.array(1.0)
    >>> gradient, state = optimizer.update(
    ...   jax.grad(loss)(w), optimizer.init(w), w, value_fn=loss)
    >>> float(gradient)  # of w**2 + 0.25 * (2 * w)**2
    4.0
  """
  check.at_least("gamma", gamma, 0)
  check.above("eps", eps, 0)
  check.one_of("method", method, ("backward", "central", "exact", "forward"))
  check.one_of("norm", norm, ("norm", "squared"))

  def init_fn(params):
    del params
    return GradientRegularizationState(count=jnp.zeros([], jnp.int32))

  def update_fn(updates, state, params=None, *, value_fn=None, **extra_args):
    del extra_args
    check.params("gradient_regularization", params)
    value_fn = check.value_fn("gradient_regularization", value_fn)
    strength = gamma(state.count) if callable(gamma) else gamma
    direction = scaled_to(updates, 1.0, 0.0) if norm == "norm" else wide(updates)
    change = _change(jax.grad(value_fn), params, updates, direction, eps, method)
    updates = jax.tree.map(
      lambda g, r: (g.astype(r.dtype) + strength * r).astype(g.dtype), updates, change
    )
    return updates, GradientRegularizationState(optax.safe_increment(state.count))

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _change(
  gradient_at: Callable[[Any], Any],
  params: Any,
  gradient: Any,
  direction: Any,
  eps: float,
  method: str,
) -> Any:
  """The gradient's rate of change along `direction`, in float32."""
  if method == "exact":
    tangent = jax.tree.map(lambda d, w: d.astype(w.dtype), direction, params)
    return wide(jax.jvp(gradient_at, (params,), (tangent,))[1])

  def at(step):
    return wide(gradient_at(moved(params, jax.tree.map(lambda d: step * d, direction))))

  ahead = wide(gradient) if method == "backward" else at(eps)
  behind = wide(gradient) if method == "forward" else at(-eps)
  width = 2 * eps if method == "central" else eps
  return jax.tree.map(lambda a, b: (a - b) / width, ahead, behind)
