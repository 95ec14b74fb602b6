"""Stochastic model-based minimization: proximal steps on models of the sampled loss."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxrl import check, oracle, reduce

from ._sharpness import moved, scaled_to, wide

replaces_gradient = True

_HALVINGS = 100


class StochasticModelBasedState(NamedTuple):
  """State of `stochastic_model_based`."""

  count: jax.typing.ArrayLike


def stochastic_model_based(
  learning_rate: float | optax.Schedule,
  model: str = "prox_linear",
  *,
  lower: float = 0.0,
  linearizations: int = 10,
  sweeps: int = 10,
  entrywise: bool = False,
) -> optax.GradientTransformationExtraArgs:
  r"""Minimises a model of this step's loss, near the parameters.

  .. math::
    w \leftarrow \arg\min_y \; f_w(y) + \tfrac{1}{2 \alpha} \|y - w\|^2

  With the loss :math:`f`, its gradient :math:`g`, and, for :math:`f = h \circ z` of the outputs
  :math:`z(w)`, their Jacobian :math:`J`, the model :math:`f_w(y)` is

  .. math::
    \max(f(w) + g^\top (y - w), \ell) & \quad \text{truncated} \\
    h(z(w) + J (y - w)) & \quad \text{prox\_linear} \\
    f(y) & \quad \text{prox\_point.}

  The better the model, the less it matters how large :math:`\alpha` is: no step overshoots the
  model's own minimum. It is a whole recipe.

  The truncated model has :math:`w - \min(\alpha, (f - \ell) / \|g\|^2) \, g`. For the others

  .. math::
    y = w - \alpha J^\top \lambda, \qquad \lambda \in \partial h(z - \alpha J J^\top \lambda),

  where the entries of :math:`\lambda` are found one after the other, by bisection: exactly for
  one example, and by several sweeps for a batch. Since :math:`h` is only asked for
  subgradients, it may have kinks, as the absolute error has. The proximal point is found by
  `linearizations` steps of that kind, each about the last one's answer.

  Args:
    learning_rate: :math:`\alpha`, at least 0, or a schedule of the step count.
    model: `truncated`, `prox_linear` or `prox_point`.
    lower: :math:`\ell`, a bound below which the loss cannot fall; of `truncated`.
    linearizations: of `prox_point`, above 0. Where the outputs are linear in the parameters,
      one does.
    sweeps: over the outputs of a batch, above 0.
    entrywise: whether the loss is a sum over single outputs though examples have several of
      them, as it is with squared error, and not with softmax cross-entropy.

  Returns:
    A gradient transformation whose `update` needs `params` and the loss as `value_fn`: for
    `prox_linear` and `prox_point` an Oracle with `outputs` and `loss_of`, a sum of convex
    functions of one example's output each.

  Raises:
    ValueError: an argument is out of range, `model` is none of its choices, or `update` was
      called without `params`, or with several outputs an example and not `entrywise`.
    TypeError: `update` was called without `value_fn`, or without an Oracle that has the parts;
      or the outputs are not one array.

  Cost: 4 bytes of state in all. `truncated` takes no evaluation where `update` is given
  `value`. The others take, for each linearization, one pass through the model and N backward
  passes, for N outputs in the batch; `4 * N` bytes a parameter while they run; and about
  `30 * sweeps * N` gradients of the loss with respect to the outputs, in turn.

  Notes:
    The theory is for losses that are :math:`\rho`-weakly convex (:math:`f + \rho \|w\|^2 / 2` is
    convex) and has :math:`1 / \alpha_t = \rho + \sqrt{t} / \gamma`, here a schedule. Beyond
    :math:`\alpha = 1 / \rho` a proximal point may not be unique, and the iteration by
    linearizations need not settle.
    For a smooth loss, one Newton step for :math:`\lambda` is a step of `egn`, with damping
    :math:`1 / \alpha`.
    The paper adds a regulariser to the model. A projection behind this element is exact for
    none of these models.

  References:
    [250] Davis, Drusvyatskiy, "Stochastic model-based minimization of weakly convex functions",
      2018, arXiv:1803.06523
    Asi, Duchi, "Stochastic (Approximate) Proximal Point Methods: Convergence, Optimality, and
      Adaptivity", 2018, arXiv:1810.05633 (truncated models)

  Example:
    >>> import jax, jax.numpy as jnp
    >>> from jaxrl.oracle import Oracle
    >>> outputs = lambda w: w[None] ** 2 - 4.0  # of one example
    >>> loss_of = lambda z: jnp.mean(jnp.abs(z))
    >>> w = jnp.array(1.0)
    >>> loss = Oracle(lambda w: loss_of(outputs(w)), w, outputs=outputs, loss_of=loss_of)
    >>> optimizer = stochastic_model_based(1e6)  # the rate hardly matters
    >>> updates, state = optimizer.update(jax.grad(loss)(w), optimizer.init(w), w, value_fn=loss)
    >>> print(f"{w + updates:.3f}")  # 1**2 + 2 * (y - 1) = 4
    2.500
  """
  check.at_least("learning_rate", learning_rate, 0)
  check.one_of("model", model, ("prox_linear", "prox_point", "truncated"))
  check.whole("linearizations", linearizations, 1)
  check.whole("sweeps", sweeps, 1)

  def init_fn(params):
    del params
    return StochasticModelBasedState(jnp.zeros([], jnp.int32))

  def update_fn(updates, state, params=None, *, value=None, value_fn=None, **extra_args):
    del extra_args
    check.params("stochastic_model_based", params)
    rate = learning_rate(state.count) if callable(learning_rate) else learning_rate
    if model == "truncated":
      value_fn = check.value_fn("stochastic_model_based", value_fn)
      step = _truncated(updates, value_fn(params) if value is None else value, rate, lower)
    else:
      value_fn = oracle.need_oracle("stochastic_model_based", value_fn)
      steps = 1 if model == "prox_linear" else linearizations
      step = _composite(value_fn, params, rate, (steps, sweeps, entrywise))
    updates = jax.tree.map(lambda s, w: s.astype(w.dtype), step, params)
    return updates, StochasticModelBasedState(optax.safe_increment(state.count))

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _truncated(gradient: Any, value: jax.Array, rate: Any, lower: jax.typing.ArrayLike) -> Any:
  """The step as a length along the unit gradient, so that no square overflows."""
  unit = scaled_to(gradient, 1.0, 0.0)
  slope = jnp.asarray(optax.tree.vdot(unit, wide(gradient)))
  length = jnp.minimum(rate * slope, reduce.ratio(jnp.maximum(value - lower, 0), slope))
  return jax.tree.map(lambda u: -length * u, unit)


def _composite(
  value_fn: oracle.Oracle, params: Any, rate: Any, options: tuple[int, int, bool]
) -> Any:
  """The step to the (approximate) minimiser, in float32."""
  linearizations, sweeps, entrywise = options

  def about(step, weights):
    """The step on the linearization at params + step; `weights` is the last lambda."""
    outputs, jacobian = _linearized(value_fn, moved(params, step), entrywise)
    shape, size = outputs.shape, outputs.size
    rows = [leaf.reshape(size, -1) for leaf in jax.tree.leaves(jacobian)]
    kernel = sum((_product(r, r.T) for r in rows), jnp.zeros((size, size), outputs.dtype))
    back = [_product(r, s.reshape(-1)) for r, s in zip(rows, jax.tree.leaves(step), strict=True)]
    origin = outputs.reshape(-1) - sum(back, jnp.zeros(size, outputs.dtype))

    def slopes(z):
      return jax.grad(value_fn.loss_of)(z.reshape(shape)).reshape(-1)

    start = jnp.zeros_like(origin) if weights is None else weights
    weights = _dual(slopes, origin, jnp.asarray(rate * kernel), start, sweeps if size > 1 else 1)
    fall = jax.tree.map(lambda j: jnp.tensordot(weights, j, 1, precision="highest"), jacobian)
    return jax.tree.map(lambda f: -rate * f, fall), weights

  step, weights = about(jax.tree.map(jnp.zeros_like, wide(params)), None)
  if linearizations == 1:
    return step
  carry = step, weights
  return jax.lax.fori_loop(1, linearizations, lambda _, carry: about(*carry), carry)[0]


def _linearized(value_fn: oracle.Oracle, params: Any, entrywise: bool) -> tuple[jax.Array, Any]:
  """Outputs in float32, and their Jacobian: leaves `[N, *leaf]`."""

  def outputs_at(params):
    outputs = value_fn.outputs(params)
    if not isinstance(outputs, jax.Array):
      structure = jax.tree.structure(outputs)
      raise TypeError(f"stochastic_model_based needs one output array, got {structure}")
    return outputs.astype(jnp.promote_types(outputs.dtype, jnp.float32))

  outputs, pullback = jax.vjp(outputs_at, params)
  if outputs.size != outputs.shape[0] and not entrywise:
    raise ValueError(
      f"stochastic_model_based needs one output an example, got {[*outputs.shape]}: pass "
      "entrywise=True if the loss is a sum over all of them, else model='truncated'"
    )
  basis = jnp.eye(outputs.size, dtype=outputs.dtype).reshape(outputs.size, *outputs.shape)
  (jacobian,) = jax.vmap(pullback)(basis)
  return outputs, wide(jacobian)


def _dual(
  slopes: Callable[[jax.Array], jax.Array],
  origin: jax.Array,
  kernel: jax.Array,
  start: jax.Array,
  sweeps: int,
) -> jax.Array:
  """A solution of lambda = slopes(origin - kernel lambda), entry by entry.

  For one entry, s - slope(z - k s) grows with s, and changes its sign between 0 and slope(z);
  the interval is halved until no number lies within it.
  """

  def improve(step, weights):
    i = step % origin.size
    others = origin - kernel @ weights + kernel[:, i] * weights[i]

    def slope(s):
      return slopes(others.at[i].add(-kernel[i, i] * s))[i]

    def between(carry):
      low, middle, high, count = carry
      return (low < middle) & (middle < high) & (count < _HALVINGS)

    def halve(carry):
      low, middle, high, count = carry
      above = middle > slope(middle)
      low, high = jnp.where(above, low, middle), jnp.where(above, middle, high)
      return low, (low + high) / 2, high, count + 1

    first = slope(jnp.zeros_like(origin[0]))
    ends = jnp.minimum(first, 0), first / 2, jnp.maximum(first, 0), 0
    _, middle, _, _ = jax.lax.while_loop(between, halve, ends)
    return weights.at[i].set(middle)

  return jax.lax.fori_loop(0, sweeps * origin.size, improve, start)


def _product(a: jax.Array, b: jax.Array) -> jax.Array:
  return jnp.matmul(a, b, precision="highest")
