"""Truncated Newton: conjugate gradients on the Hessian, as far as they help, and a line search."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxrl import check, oracle, reduce

from . import _vectors


class NewtonCgState(NamedTuple):
  """State of `newton_cg`: what its last step took."""

  count: jax.typing.ArrayLike
  metrics: dict[str, jax.Array]


def newton_cg(
  learning_rate: float | optax.Schedule = 1.0,
  *,
  damping: float = 0.0,
  cg_steps: int = 10,
  tolerance: float = 0.5,
  curvature_slices: int = 1,
  armijo: float = 1e-4,
  backtrack: float = 0.5,
  max_backtracks: int = 20,
) -> optax.GradientTransformationExtraArgs:
  r"""Hessian-free inexact Newton steps, which stop at negative curvature.

  Conjugate gradients on :math:`(H + \lambda I) s = -g` start at 0 and end when

  .. math::
    \|(H + \lambda I) s + g\| \le \min(\rho, \sqrt{\|g\|}) \, \|g\|,

  after `cg_steps`, or where a direction p has :math:`p^\top (H + \lambda I) p \le 0`: then s is
  what was found before, or :math:`-g` at the very first. The step is :math:`\alpha s` with the
  largest :math:`\alpha` of :math:`\eta, \eta \gamma, \eta \gamma^2, \ldots` that gives

  .. math::
    F(w + \alpha s) \le F(w) + c \, \alpha \, g^\top s.

  Args:
    learning_rate: :math:`\eta`, at least 0, or a schedule of the step count: the first step
      size that is tried.
    damping: :math:`\lambda`, at least 0.
    cg_steps: Hessian-vector products a step, at most.
    tolerance: :math:`\rho`, in (0, 1).
    curvature_slices: the Hessian is that of the first of so many equal slices of the batch,
      while the gradient is the batch's; 1 for all of it.
    armijo: c, in (0, 1).
    backtrack: :math:`\gamma`, in (0, 1).
    max_backtracks: at most, at least 0; the last step size is taken in any case.

  Returns:
    A recipe whose `update` needs `params` and `value_fn`. The state's metrics hold the step size
    and the number of products.

  Raises:
    ValueError: an argument is out of range, or `update` was called without `params`.
    TypeError: `update` was called without `value_fn`, or without an Oracle for
      `curvature_slices`.

  Cost: a Hessian-vector product, about two gradient evaluations, for each step of conjugate
  gradients; an evaluation of the loss at the parameters and at each step size; 20 bytes a
  parameter while it runs, none between steps.

  Notes:
    The incoming gradient is the right-hand side: what changes it in front (clipping, decay)
    changes the step. The survey's Algorithm 6.1 has a fixed :math:`\rho`; the square root makes
    the iteration superlinear (Nocedal and Wright, "Numerical Optimization", 2006, Algorithm 7.1).

  References:
    [234] Bottou, Curtis, Nocedal, "Optimization Methods for Large-Scale Machine Learning", 2016,
      arXiv:1606.04838
    Byrd, Chin, Neveitt, Nocedal, "On the Use of Stochastic Hessian Information in Optimization
      Methods for Machine Learning", 2011

  Example:
    >>> import jax, jax.numpy as jnp
    >>> loss = lambda w: 0.5 * jnp.sum(jnp.array([100.0, 1.0]) * w**2)
    >>> optimizer = newton_cg(tolerance=1e-6)
    >>> w = jnp.array([1.0, 1.0])
    >>> updates, _ = optimizer.update(
    ...   jax.grad(loss)(w), optimizer.init(w), w, value_fn=loss)
    >>> print(jnp.round(updates, 4))
    [-1. -1.]
  """
  check.at_least("learning_rate", learning_rate, 0)
  check.at_least("damping", damping, 0)
  check.whole("cg_steps", cg_steps, 1)
  check.whole("curvature_slices", curvature_slices, 1)
  for name, value in (("tolerance", tolerance), ("armijo", armijo), ("backtrack", backtrack)):
    check.above(name, value, 0)
    check.below(name, value, 0, 1)
  check.whole("max_backtracks", max_backtracks, 0)

  def init_fn(params):
    del params
    return NewtonCgState(jnp.zeros([], jnp.int32), _metrics(0.0, 0))

  def update_fn(updates, state, params=None, *, value_fn=None, **extra_args):
    del extra_args
    check.params("newton_cg", params)
    value_fn = check.value_fn("newton_cg", value_fn)
    at, gradient = _vectors.wide(params), _vectors.wide(updates)
    curved = _curved(value_fn, curvature_slices)

    def damped(vector):
      product = _vectors.hessian_product(curved, at, vector)[1]
      return _vectors.moved(product, damping, vector)

    # Of unit length, so that its square neither overflows nor underflows.
    length = _vectors.norm(gradient)
    close = jnp.minimum(tolerance, jnp.sqrt(length))
    unit, products = _truncated(damped, _vectors.unit(gradient), close, cg_steps)
    step = _vectors.scaled(length, unit)
    rate = learning_rate(state.count) if callable(learning_rate) else learning_rate
    rate = _backtracked(
      lambda rate: value_fn(_vectors.moved(at, rate, step)),
      armijo * length * _vectors.dot(_vectors.unit(gradient), step),
      jnp.asarray(rate, length.dtype),
      backtrack,
      max_backtracks,
    )
    updates = jax.tree.map(lambda s, w: (rate * s).astype(w.dtype), step, params)
    return updates, NewtonCgState(optax.safe_increment(state.count), _metrics(rate, products))

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _metrics(step_size: Any, products: Any) -> dict[str, jax.Array]:
  values = {"step_size": step_size, "products": products}
  return {name: jnp.asarray(value, jnp.float32) for name, value in values.items()}


def _curved(value_fn: Any, slices: int) -> Callable[[Any], jax.Array]:
  """The loss whose Hessian it is."""
  if slices == 1:
    return value_fn
  whole = oracle.need_oracle("newton_cg", value_fn)
  return lambda params: whole.of_slice(params, 0, slices)


def _truncated(
  product: Callable[[Any], Any], gradient: Any, close: jax.Array, most: int
) -> tuple[Any, jax.Array]:
  """Conjugate gradients on `product(s) = -gradient`, and how many products they took."""

  def go_on(carry):
    tried, _, residual, _, flat = carry
    return (tried < most) & ~flat & (_vectors.norm(residual) > close)

  def go(carry):
    tried, found, residual, direction, _ = carry
    image = product(direction)
    bent = _vectors.dot(direction, image)
    flat = ~(bent > 0)
    square = _vectors.dot(residual, residual)
    length = reduce.ratio(square, bent)
    ahead = _vectors.moved(found, length, direction)
    after = _vectors.moved(residual, length, image)
    turned = reduce.ratio(_vectors.dot(after, after), square)
    following = jax.tree.map(lambda r, d: (turned * d - r).astype(d.dtype), after, direction)
    downhill = _vectors.scaled(-1, gradient)
    stopped = jax.tree.map(lambda f, d: jnp.where(tried == 0, d, f), found, downhill)
    found = jax.tree.map(lambda s, a: jnp.where(flat, s, a), stopped, ahead)
    return tried + 1, found, after, following, flat

  zeros = jax.tree.map(jnp.zeros_like, gradient)
  start = (
    jnp.zeros([], jnp.int32),
    zeros,
    gradient,
    _vectors.scaled(-1, gradient),
    jnp.zeros((), bool),
  )
  tried, found, *_ = jax.lax.while_loop(go_on, go, start)
  return found, tried


def _backtracked(
  value_at: Callable[[jax.Array], jax.Array],
  promised: jax.Array,
  rate: jax.Array,
  factor: Any,
  most: int,
) -> jax.Array:
  """The first of falling step sizes whose loss falls by what was promised a unit of it."""
  start = value_at(jnp.zeros_like(rate))

  def short(carry):
    tried, rate, after = carry
    # Said so that a loss that is no number fails.
    return (tried < most) & ~(after <= start + rate * promised)

  def shorter(carry):
    tried, rate, _ = carry
    rate = (factor * rate).astype(rate.dtype)
    return tried + 1, rate, value_at(rate)

  return jax.lax.while_loop(short, shorter, (jnp.zeros([], jnp.int32), rate, value_at(rate)))[1]
