"""Target-based surrogates: several steps of the model towards one gradient step of its outputs."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxrl import check, oracle

from ._sharpness import moved, wide

replaces_gradient = True

_SMALLEST_STEP, _TRIALS, _SMALLEST_NORM = 1e-6, 100, 1e-6


class SsoTargetSurrogateState(NamedTuple):
  """State of `sso_target_surrogate`."""

  count: jax.typing.ArrayLike


def sso_target_surrogate(
  learning_rate: float | optax.Schedule,
  inner_steps: int = 10,
  *,
  c: float = 0.5,
  shrink: float = 0.9,
  initial_step: float = 10.0,
) -> optax.GradientTransformationExtraArgs:
  r"""Descends a surrogate that uses one gradient of the loss for several steps of the model.

  The outputs :math:`z_i(w)` are the targets. With the loss :math:`\tfrac1B \sum_i \ell_i`,
  the outputs :math:`z_i` and gradients :math:`v_i = \nabla \ell_i(z_i)` at the parameters,

  .. math::
    S(w') = \tfrac1B \sum_i \big( \eta \, v_i^\top (z_i(w') - z_i)
      + \tfrac12 \|z_i(w') - z_i\|^2 \big)

  is descended by `inner_steps` gradient steps, each with a line search by Armijo's test. It is
  up to a constant the mean of :math:`\tfrac12 \|z_i(w') - (z_i - \eta v_i)\|^2`: the model is
  fitted to a gradient step of its outputs. Where each :math:`\ell_i` is smooth in the outputs
  with constant :math:`L` and :math:`\eta \le 1 / L`, :math:`S / \eta` is above the change of
  the loss, so that every step on the same batch lowers it. It pays where the loss (a simulator,
  an expert, a long context) costs more than the model. It is a whole recipe.

  Args:
    learning_rate: :math:`\eta`, in the space of the outputs, at least 0, or a schedule of the
      step count: 1 for the squared error with a factor 1/2, 4 for binary and 1 for softmax
      cross-entropy; with stochastic batches a multiple of :math:`1 / \sqrt{t}`.
    inner_steps: at most, above 0; fewer once the norm of the surrogate's gradient is 1e-6.
    c: of Armijo's test :math:`S(w' - a \nabla S) \le S(w') - c \, a \|\nabla S\|^2`, in [0, 1).
    shrink: by which a step that fails is multiplied, in (0, 1).
    initial_step: :math:`a` at the beginning of an update, above 0. Each inner step begins by
      the last one's.

  Returns:
    A gradient transformation whose `update` needs `params` and an Oracle as `value_fn`.

  Raises:
    ValueError: an argument is out of range, or `update` was called without `params`.
    TypeError: `value_fn` is not a `jaxrl.oracle.Oracle` with `outputs` and `loss_of`, or the
      outputs are not one array.

  Cost: one gradient of the loss with respect to its outputs; of the model one pass, and for
  each inner step one forward and backward pass and a forward pass for each trial, up to a
  hundred. The incoming gradient is not used. 4 bytes of state in all.

  Notes:
    A step that no trial justified is taken with the last trial's length, as in the official
    code. That writes its surrogate as a mean over all entries of the outputs, of
    :math:`v z / \eta' + (z - z_t)^2` with the gradient :math:`v` of the mean loss: there
    :math:`\eta = 1 / (2 B \eta')`, and for C outputs an example its surrogate is :math:`2 / C`
    times this one, so that its first step of 10 is `20 / C` here. It lets steps grow again, by
    1.8 an epoch; here they start anew with every update.
    Where layers behave otherwise in training (dropout), all evaluations see the same draws.

  References:
    [195] Lavington, Vaswani, Babanezhad, Schmidt, Le Roux, "Target-based Surrogates for
      Stochastic Optimization", 2023, arXiv:2302.02607

  Example:
    >>> import jax, jax.numpy as jnp
    >>> from jaxrl.oracle import Oracle
    >>> x, y = jnp.array([[1.0], [2.0]]), jnp.array([[3.0], [6.0]])
    >>> loss_of = lambda z: jnp.mean((z - y) ** 2) / 2
    >>> w = jnp.array([[0.0]])
    >>> value_fn = Oracle(lambda w: loss_of(x @ w), w, outputs=lambda w: x @ w, loss_of=loss_of)
    >>> optimizer = sso_target_surrogate(1.0, inner_steps=20)
    >>> state = optimizer.init(w)
    >>> updates, state = optimizer.update(jax.grad(value_fn)(w), state, w, value_fn=value_fn)
    >>> print(f"{(w + updates)[0, 0]:.3f}")  # one gradient of the loss, and the fit y = 3x
    3.000
  """
  check.at_least("learning_rate", learning_rate, 0)
  check.whole("inner_steps", inner_steps, 1)
  check.below("c", c, 0, 1)
  check.above("shrink", shrink, 0)
  check.below("shrink", shrink, 0, 1)
  check.above("initial_step", initial_step, 0)

  def init_fn(params):
    del params
    return SsoTargetSurrogateState(jnp.zeros([], jnp.int32))

  def update_fn(updates, state, params=None, *, value_fn=None, **extra_args):
    del updates, extra_args
    check.params("sso_target_surrogate", params)
    value_fn = oracle.need_oracle("sso_target_surrogate", value_fn)
    rate = learning_rate(state.count) if callable(learning_rate) else learning_rate
    surrogate = _surrogate(value_fn, params, rate)
    search = _Search(c, shrink)

    def goes_on(carry):
      _, _, norm, step = carry
      return (step < inner_steps) & (norm > _SMALLEST_NORM)

    def descend(carry):
      total, length, norm, step = carry
      value, gradient = jax.value_and_grad(surrogate)(total)
      norm = optax.tree.norm(gradient).astype(norm.dtype)
      length = search.length(surrogate, total, length, (value, gradient, norm))
      return _along(total, gradient, length), length, norm, step + 1

    still = jax.tree.map(jnp.zeros_like, wide(params))
    dtype = jax.eval_shape(surrogate, still).dtype
    length, norm = (jnp.asarray(x, dtype) for x in (initial_step, jnp.inf))
    total, *_ = jax.lax.while_loop(goes_on, descend, (still, length, norm, 0))
    updates = jax.tree.map(lambda t, w: t.astype(w.dtype), total, params)
    return updates, SsoTargetSurrogateState(optax.safe_increment(state.count))

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


class _Search(NamedTuple):
  """Backtracking by Armijo's test."""

  c: jax.typing.ArrayLike
  shrink: jax.typing.ArrayLike

  def length(
    self, surrogate: Callable[[Any], jax.Array], total: Any, length: jax.Array, here: Any
  ) -> jax.Array:
    """The first of the lengths from `length` on that passes."""
    value, gradient, norm = here

    def fails(carry):
      length, passed, trials = carry
      return ~passed & (trials < _TRIALS) & (length >= _SMALLEST_STEP)

    def shorter(carry):
      length, _, trials = carry
      trial = surrogate(_along(total, gradient, length))
      passed = trial <= value - self.c * length * norm**2
      return jnp.where(passed, length, self.shrink * length), passed, trials + 1

    return jax.lax.while_loop(fails, shorter, (length, jnp.asarray(False), 0))[0]


def _along(total: Any, gradient: Any, length: jax.Array) -> Any:
  return jax.tree.map(lambda t, g: t - length.astype(t.dtype) * g, total, gradient)


def _surrogate(
  value_fn: oracle.Oracle, params: Any, rate: jax.typing.ArrayLike
) -> Callable[[Any], jax.Array]:
  """S as a function of the step away from `params`."""

  def outputs_at(step):
    outputs = value_fn.outputs(moved(params, step))
    if not isinstance(outputs, jax.Array):
      structure = jax.tree.structure(outputs)
      raise TypeError(f"sso_target_surrogate needs one output array, got {structure}")
    return outputs.astype(jnp.promote_types(outputs.dtype, jnp.float32))

  here = outputs_at(jax.tree.map(jnp.zeros_like, wide(params)))
  slopes = jax.grad(value_fn.loss_of)(here)  # of the mean: 1 / B of an example's

  def surrogate(step):
    change = outputs_at(step) - here
    return jnp.asarray(rate * jnp.vdot(slopes, change) + jnp.sum(change**2) / (2 * len(change)))

  return surrogate
