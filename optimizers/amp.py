"""Adversarial model perturbation: descend by the gradient at the worst point in a small ball."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxrl import check

from ._sharpness import moved, scaled_to, wide

replaces_gradient = True


class AmpState(NamedTuple):
  """State of `amp`."""

  count: jax.typing.ArrayLike


def amp(
  epsilon: float | optax.Schedule = 0.5,
  *,
  inner_lr: float | optax.Schedule = 1.0,
  inner_iter: int = 1,
  ball: str = "tensor",
  clip_norm: float = 50.0,
) -> optax.GradientTransformationExtraArgs:
  r"""Replaces the gradient by the one after a few steps of projected ascent.

  With :math:`L` the loss of this step's batch and :math:`C` clipping to a global norm,

  .. math::
    d_0 = 0, \qquad
    d_{i+1} = \Pi_\epsilon\big(d_i + \zeta \, C(\nabla L(w + d_i))\big), \qquad
    u = C(\nabla L(w + d_n)).

  :math:`\Pi_\epsilon` shortens what is longer than :math:`\epsilon`, and leaves the rest:
  unlike SAM's, the perturbation vanishes with the gradient. It comes first in a chain; what
  follows sees `w`: `optax.chain(amp(), optax.add_decayed_weights(1e-4), optax.sgd(0.1))`.

  Args:
    epsilon: radius :math:`\epsilon` of the ball, at least 0, or a schedule of the step count.
    inner_lr: step size :math:`\zeta` of the ascent, at least 0, or a schedule.
    inner_iter: number n of ascent steps, a whole number of at least 0.
    ball: `tensor` for a ball of this radius for every array of the parameters, `global` for
      one ball around all of them.
    clip_norm: global norm to which every gradient is clipped, above 0.

  Returns:
    A gradient transformation whose `update` needs `params` and `value_fn`, the loss of this
    step's batch as a function of the parameters.

  Raises:
    ValueError: an argument is out of range, or `update` was called without `params`.
    TypeError: `update` was called without `value_fn`.

  Cost: `inner_iter` gradient evaluations beyond the incoming one; 4 bytes of state in all; a
  temporary copy of the parameters in float32.

  Notes:
    The paper has one ball around all parameters, here `ball="global"`; the official code,
    which the paper's numbers come from, projects every tensor to a ball of its own, so that
    the perturbation may be as long as :math:`\epsilon` times the root of their number. It
    clips to norm 50 before the ascent and before the descent. The paper's runs: SGD with
    learning rate 0.1, Nesterov momentum 0.9, weight decay 1e-4, batches of 50.

  References:
    [321] Zheng, Zhang, Mao, "Regularizing Neural Networks via Adversarial Model
      Perturbation", 2020, arXiv:2010.04925

  Example:
    >>> import jax, optax
    >>> loss = lambda w: w**4
    >>> optimizer = amp(epsilon=0.5)
    >>> w = jax.numpy.array(1.0)
    >>> gradient, state = optimizer.update(
    ...   jax.grad(loss)(w), optimizer.init(w), w, value_fn=loss)
    >>> float(gradient)  # 4 * 1.5**3: the step of length 4 is cut to 0.5
    13.5
  """
  check.at_least("epsilon", epsilon, 0)
  check.at_least("inner_lr", inner_lr, 0)
  check.whole("inner_iter", inner_iter, 0)
  check.one_of("ball", ball, ("global", "tensor"))
  check.above("clip_norm", clip_norm, 0)

  def init_fn(params):
    del params
    return AmpState(count=jnp.zeros([], jnp.int32))

  def update_fn(updates, state, params=None, *, value_fn=None, **extra_args):
    del extra_args
    check.params("amp", params)
    value_fn = check.value_fn("amp", value_fn)
    radius = epsilon(state.count) if callable(epsilon) else epsilon
    rate = inner_lr(state.count) if callable(inner_lr) else inner_lr
    gradient, shift = _within(wide(updates), clip_norm), optax.tree.zeros_like(wide(params))
    for _ in range(inner_iter):
      shift = jax.tree.map(lambda d, g: d + rate * g, shift, gradient)
      shift = _projected(shift, radius, ball)
      gradient = _within(wide(jax.grad(value_fn)(moved(params, shift))), clip_norm)
    updates = jax.tree.map(lambda g, u: g.astype(u.dtype), gradient, updates)
    return updates, AmpState(optax.safe_increment(state.count))

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _projected(shift: Any, radius: jax.typing.ArrayLike, ball: str) -> Any:
  if ball == "global":
    return _within(shift, radius)
  return jax.tree.map(lambda d: _within(d, radius), shift)


def _within(tree: Any, radius: jax.typing.ArrayLike) -> Any:
  """`tree`, shortened to norm `radius` where it is longer."""
  too_long = optax.tree.norm(tree) > radius
  return jax.tree.map(lambda t, s: jnp.where(too_long, s, t), tree, scaled_to(tree, radius, 0.0))
