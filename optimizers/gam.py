"""Gradient norm aware minimization: descend where the gradient nearby stays small."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxrl import check, parallel

from ._sharpness import scaled_to, wide

replaces_gradient = True

AxisName = str | tuple[str, ...] | None


class GamState(NamedTuple):
  """State of `gam`, `gam_exact` and `gam_sam`."""

  count: jax.typing.ArrayLike


def gam(
  rho: float | optax.Schedule = 0.2,
  rho_prime: float | optax.Schedule = 0.02,
  alpha: float = 0.6,
  beta: float = 0.5,
  gamma: float = 0.03,
  *,
  adaptive: bool = False,
  h_minus: Literal["code", "paper"] = "code",
  eps: float = 1e-12,
  axis_name: AxisName = None,
) -> optax.GradientTransformationExtraArgs:
  r"""Replaces the gradient by one that also lowers the largest gradient norm nearby.

  The accelerated form, which needs gradients only. With the loss :math:`L` of this step's
  batch, its incoming gradient :math:`g_0`, and
  :math:`e_r(v) = r \, v / (\|v\|_2 + \epsilon)`,

  .. math::
    g_1 &= \nabla L(w + e_{\rho'}(g_0)), \qquad w_2 = w + e_\rho(g_1 - g_0), \\
    g_2 &= \nabla L(w_2), \qquad g_3 = \nabla L(w_2 + e_{\rho'}(g_2)), \\
    h_+ &= \alpha g_1 + (1 - \alpha) g_3, \qquad h_- = g_0 + (1 - \beta) g_2, \\
    u &= h_+ - \gamma h_-^\perp,

  :math:`h_-^\perp` being the part of :math:`h_-` that is orthogonal to :math:`h_+`. Norms and
  products are taken over the whole tree, in float32. It comes first in a chain; what follows
  sees the parameters `w`: `optax.chain(gam(rho=0.2), optax.adamw(1e-3))`. Under `optax.masked`
  only the masked-in part of the tree is perturbed.

  With `adaptive`, :math:`e_r(v) = r \, w^2 v / (\| |w| \, v \|_2 + \epsilon)` elementwise,
  where :math:`w` is the point that it moves: :math:`w_2` in :math:`g_3`, `w` elsewhere.

  Args:
    rho: radius :math:`\rho` in which the gradient's norm is made large, at least 0, or a
      schedule of the step count.
    rho_prime: radius :math:`\rho'` of the finite differences, at least 0, or a schedule of the
      step count.
    alpha: :math:`\alpha`, in [0, 1].
    beta: :math:`\beta`, in [0, 1].
    gamma: :math:`\gamma`, at least 0.
    adaptive: scale perturbations elementwise by the parameters.
    h_minus: `"code"` as above, or `"paper"` for
      :math:`h_- = \beta g_0 + (1 - \beta) g_2`.
    eps: added to norms, at least 0.
    axis_name: axes of the workers, whose local gradients come in: each makes a :math:`u` from
      its own loss, and their mean goes out. `None` where gradients are those of the whole
      batch.

  Returns:
    A gradient transformation whose `update` needs `params` and `value_fn`, the loss of this
    step's batch (the worker's own, with `axis_name`) as a function of the parameters.

  Raises:
    ValueError: an argument is out of range; or `update` was called without `params`, without
      workers along `axis_name`, or with a gradient that they share.
    TypeError: `update` was called without `value_fn`.

  Cost: three gradient evaluations beyond the incoming one; 4 bytes of state in all; four
  temporary gradients in float32, 16 bytes a parameter. Workers send one gradient each.

  Notes:
    Algorithm 2 of the paper has :math:`h_- = \beta g_0 + (1 - \beta) g_2`. The official code,
    which made the paper's numbers and is the default, leaves :math:`\beta` out in front of
    :math:`g_0`. Defaults are those of the official run of ResNets on CIFAR-100. Others of it,
    as (rho_prime, alpha, beta, gamma), always with rho 0.2: PyramidNet on CIFAR-100 (0.04,
    0.5, 0.3, 0.05), CIFAR-10 ResNet (0.03, 0.1, 0.1, 0.05), CIFAR-10 PyramidNet (0.03, 0.1,
    0.1, 0.03). The official code adds `eps` to products of norms in the decomposition too,
    and so shrinks what it takes for the parallel part where gradients are below 1e-6. It
    treats the gradients of workers as `axis_name` does. Zero gradients give a zero update.

  References:
    [181] Zhang, Xu, Yu, Zou, Cui, "Gradient Norm Aware Minimization Seeks First-Order Flatness
      and Improves Generalization", 2023, arXiv:2303.03108

  Example:
    >>> import jax, jax.numpy as jnp
    >>> from optimizers.gam import gam
    >>> loss = lambda w: w**4
    >>> optimizer = gam(rho=0.5, rho_prime=0.5, alpha=0.5)
    >>> w = jnp.array(1.0)
    >>> updates, state = optimizer.update(jax.grad(loss)(w), optimizer.init(w), w, value_fn=loss)
    >>> print(f"{updates:.3f}")  # half of 4 * 1.5**3 + 4 * 2**3
    22.750
  """
  check.at_least("rho", rho, 0)
  check.at_least("rho_prime", rho_prime, 0)
  check.between("alpha", alpha, 0, 1)
  check.between("beta", beta, 0, 1)
  check.at_least("gamma", gamma, 0)
  check.at_least("eps", eps, 0)
  check.one_of("h_minus", h_minus, ("code", "paper"))
  coefficient = beta if h_minus == "paper" else 1

  def step(v, radius, point):
    """The point that lies `radius` from `point` in the direction of v."""
    size = jax.tree.map(jnp.abs if adaptive else jnp.ones_like, point)
    along = scaled_to(optax.tree.mul(size, v), radius, eps)
    return optax.tree.add(point, optax.tree.mul(size, along))

  def direction(loss, g0, start, count):
    far, near = _at(rho, count), _at(rho_prime, count)
    g1 = loss.gradient(step(g0, near, start))
    point = step(optax.tree.sub(g1, g0), far, start)
    g2 = loss.gradient(point)
    g3 = loss.gradient(step(g2, near, point))
    h_plus = optax.tree.add_scale(optax.tree.scale(alpha, g1), 1 - alpha, g3)
    less = optax.tree.add_scale(optax.tree.scale(coefficient, g0), 1 - beta, g2)
    return optax.tree.add_scale(h_plus, -gamma, _orthogonal_part(less, h_plus, eps))

  return _element("gam", direction, axis_name)


def gam_exact(
  rho: float | optax.Schedule,
  alpha: float,
  *,
  eps: float = 1e-12,
  axis_name: AxisName = None,
) -> optax.GradientTransformationExtraArgs:
  r"""Adds to the gradient that of the largest gradient norm nearby, by Hessian-vector products.

  With the loss :math:`L` of this step's batch, its Hessian :math:`H`, its incoming gradient
  :math:`g`, and :math:`e_r(v) = r \, v / (\|v\|_2 + \epsilon)`, the norm taken over the whole
  tree, in float32,

  .. math::
    w' = w + e_\rho(H(w) \, e_1(g)), \qquad
    u = g + \alpha H(w') \, e_\rho(\nabla L(w')),

  which is the gradient of :math:`L + \alpha R` with first-order flatness
  :math:`R(w) = \rho \max_{\|w' - w\| \le \rho} \|\nabla L(w')\|`, its maximum found by one step
  and held fixed. It comes first in a chain, and acts under `optax.masked`, as `gam` does.

  Args:
    rho: radius :math:`\rho`, at least 0, or a schedule of the step count.
    alpha: weight :math:`\alpha` of the flatness, at least 0.
    eps: added to norms, at least 0.
    axis_name: axes of the workers, as in `gam`.

  Returns:
    A gradient transformation whose `update` needs `params` and `value_fn`, the loss of this
    step's batch (the worker's own, with `axis_name`) as a function of the parameters, twice
    differentiable.

  Raises:
    ValueError: an argument is out of range; or `update` was called without `params`, without
      workers along `axis_name`, or with a gradient that they share.
    TypeError: `update` was called without `value_fn`.

  Cost: a gradient evaluation and two Hessian-vector products beyond the incoming gradient,
  three passes through the model; a product takes about two gradients' time. 4 bytes of state
  in all, temporarily 12 bytes a parameter. Workers send one gradient each.

  Notes:
    Algorithm 1 of the paper, equations 7 and 8; its authors released only the accelerated form,
    `gam`, which approximates it. No defaults: the paper's settings of this form are not known
    to us. Where the gradient, or its Hessian-vector product, is zero, nothing is perturbed.

  References:
    [181] Zhang, Xu, Yu, Zou, Cui, "Gradient Norm Aware Minimization Seeks First-Order Flatness
      and Improves Generalization", 2023, arXiv:2303.03108

  Example:
    >>> import jax, jax.numpy as jnp
    >>> from optimizers.gam import gam_exact
    >>> loss = lambda w: w**4
    >>> optimizer = gam_exact(rho=0.5, alpha=1.0)
    >>> w = jnp.array(1.0)
    >>> updates, state = optimizer.update(jax.grad(loss)(w), optimizer.init(w), w, value_fn=loss)
    >>> print(f"{updates:.2f}")  # 4 * 1**3 + 0.5 * 12 * 1.5**2
    17.50
  """
  _check_flatness(rho, alpha, eps)

  def direction(loss, g, start, count):
    flatness = _flatness_gradient(loss, g, start, _at(rho, count), eps)
    return optax.tree.add_scale(g, alpha, flatness)

  return _element("gam_exact", direction, axis_name)


def gam_sam(
  rho: float | optax.Schedule,
  alpha: float,
  rho_sam: float | optax.Schedule = 0.05,
  *,
  eps: float = 1e-12,
  axis_name: AxisName = None,
) -> optax.GradientTransformationExtraArgs:
  r"""SAM's gradient together with that of the largest gradient norm nearby.

  `gam_exact` whose loss is SAM's: with its symbols,

  .. math::
    u = \nabla L(w + e_{\rho_s}(g)) + \alpha H(w') \, e_\rho(\nabla L(w')).

  Args:
    rho: radius :math:`\rho` of the flatness, at least 0, or a schedule of the step count.
    alpha: weight :math:`\alpha` of the flatness, at least 0.
    rho_sam: radius :math:`\rho_s` of SAM's perturbation, at least 0, or a schedule of the step
      count.
    eps: added to norms, at least 0.
    axis_name: axes of the workers, as in `gam`.

  Returns:
    A gradient transformation whose `update` needs `params` and `value_fn`, the loss of this
    step's batch (the worker's own, with `axis_name`) as a function of the parameters, twice
    differentiable.

  Raises:
    ValueError: an argument is out of range; or `update` was called without `params`, without
      workers along `axis_name`, or with a gradient that they share.
    TypeError: `update` was called without `value_fn`.

  Cost: two gradient evaluations and two Hessian-vector products beyond the incoming gradient,
  four passes through the model; otherwise as `gam_exact`.

  Notes:
    The paper adds its flatness to the loss of any method; this is the combination of its
    experiments. `rho_sam` is that of `sam`; no defaults of the rest, as for `gam_exact`.

  References:
    [181] Zhang, Xu, Yu, Zou, Cui, "Gradient Norm Aware Minimization Seeks First-Order Flatness
      and Improves Generalization", 2023, arXiv:2303.03108

  Example:
    >>> import jax, jax.numpy as jnp
    >>> from optimizers.gam import gam_sam
    >>> loss = lambda w: w**4
    >>> optimizer = gam_sam(rho=0.5, alpha=1.0, rho_sam=1.0)
    >>> w = jnp.array(1.0)
    >>> updates, state = optimizer.update(jax.grad(loss)(w), optimizer.init(w), w, value_fn=loss)
    >>> print(f"{updates:.2f}")  # 4 * 2**3 + 0.5 * 12 * 1.5**2
    45.50
  """
  _check_flatness(rho, alpha, eps)
  check.at_least("rho_sam", rho_sam, 0)

  def direction(loss, g, start, count):
    uphill = optax.tree.add(start, scaled_to(g, _at(rho_sam, count), eps))
    flatness = _flatness_gradient(loss, g, start, _at(rho, count), eps)
    return optax.tree.add_scale(loss.gradient(uphill), alpha, flatness)

  return _element("gam_sam", direction, axis_name)


class _Loss(NamedTuple):
  """Derivatives of this step's loss, from and to float32, taken in the parameters' dtype."""

  value_fn: Callable[[Any], jax.Array]
  params: Any

  def gradient(self, point: Any) -> Any:
    return wide(jax.grad(self.value_fn)(optax.tree.cast_like(point, self.params)))

  def hessian_product(self, point: Any, direction: Any) -> Any:
    point, direction = (optax.tree.cast_like(tree, self.params) for tree in (point, direction))
    return wide(jax.jvp(jax.grad(self.value_fn), (point,), (direction,))[1])


def _element(
  method: str, direction: Callable[..., Any], axis_name: AxisName
) -> optax.GradientTransformationExtraArgs:
  """The element with the updates `direction(loss, gradient, params, count)`, in float32."""

  def init_fn(params):
    del params
    return GamState(count=jnp.zeros([], jnp.int32))

  def update_fn(updates, state, params=None, *, value_fn=None, **extra_args):
    del extra_args
    check.params(method, params)
    value_fn = check.value_fn(method, value_fn)
    gradient = updates
    if axis_name is not None:
      gradient = parallel.own_gradient(method, gradient, axis_name)
      params = parallel.vary(params, axis_name)
    made = direction(_Loss(value_fn, params), wide(gradient), wide(params), state.count)
    if axis_name is not None:
      made = jax.lax.pmean(made, axis_name)
    return optax.tree.cast_like(made, updates), GamState(optax.safe_increment(state.count))

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _check_flatness(rho: Any, alpha: float, eps: float) -> None:
  check.at_least("rho", rho, 0)
  check.at_least("alpha", alpha, 0)
  check.at_least("eps", eps, 0)


def _flatness_gradient(
  loss: _Loss, gradient: Any, start: Any, radius: jax.typing.ArrayLike, eps: float
) -> Any:
  """The gradient of radius * max |grad L|, at the point of the ball where one step finds it."""
  growth = loss.hessian_product(start, scaled_to(gradient, 1, eps))
  point = optax.tree.add(start, scaled_to(growth, radius, eps))
  return loss.hessian_product(point, scaled_to(loss.gradient(point), radius, eps))


def _orthogonal_part(tree: Any, other: Any, eps: float) -> Any:
  """`tree` without its part along `other`."""
  unit = scaled_to(other, 1, eps)
  return optax.tree.sub(tree, optax.tree.scale(optax.tree.vdot(tree, unit), unit))


def _at(schedule: float | optax.Schedule, count: jax.typing.ArrayLike) -> Any:
  return schedule(count) if callable(schedule) else schedule
