"""Exact Gauss-Newton: curvature in the space of the outputs, not of the parameters."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxrl import check, oracle, reduce

from . import _vectors

replaces_gradient = True

_ARMIJO = 0.1  # Of the decrease that the slope promises, what a step must give.
_SHORTER, _LONGER = 0.8, 1.5
_SEARCHES = 15
_LEAST_DAMPING, _MOST_DAMPING = 1e-12, 1e6
_GUARD = 8  # Multiples of the machine epsilon, times the trace, below which no damping goes.


class EgnState(NamedTuple):
  """State of `egn`: averaged directions with momentum; the step size and damping last used."""

  count: jax.typing.ArrayLike
  velocity: Any
  metrics: dict[str, jax.Array]


class _Model(NamedTuple):
  """The outputs at the parameters, their derivative, and the loss as a function of them."""

  outputs: jax.Array
  pull: Callable[[jax.Array], Any]
  loss_of: Callable[[jax.Array], jax.Array]

  def push(self, direction: Any) -> jax.Array:
    """The change of the outputs along a direction of the parameters."""
    return jax.linear_transpose(self.pull, self.outputs)(direction)[0]

  def residual(self) -> jax.Array:
    """The gradient of the loss at the outputs."""
    return jax.grad(self.loss_of)(self.outputs)

  def bent(self, change: jax.Array) -> jax.Array:
    """The Hessian of the loss at the outputs times a change of them."""
    return jax.jvp(jax.grad(self.loss_of), (self.outputs,), (change,))[1]


def egn(
  learning_rate: float | optax.Schedule,
  damping: float | optax.Schedule = 1.0,
  *,
  momentum: float = 0.0,
  line_search: str = "none",
  adaptive_damping: bool = False,
  damping_up: float = 1.01,
  damping_down: float = 0.99,
  max_system: int = 512,
  cg_steps: int = 50,
  independent: bool = False,
) -> optax.GradientTransformationExtraArgs:
  r"""Gauss-Newton steps, exact for this batch, by a system of the size of the outputs.

  With outputs :math:`z \in R^{B \times C}` of the batch, their Jacobian :math:`J`, and
  the gradient :math:`r` and Hessian :math:`Q = A A^\top` of the scalar loss with respect to
  :math:`z` (:math:`Q` and :math:`A` are a block of size C for each example),

  .. math::
    d = -(J^\top Q J + \lambda I)^{-1} J^\top r
      = -J^\top A (A^\top J J^\top A + \lambda I)^{-1} s, \quad A s = r,
    \qquad w \leftarrow w + \alpha d.

  The second form needs a system of `B * C` equations however large the model is; it is
  symmetric and positive definite, and solved by Cholesky. What of :math:`r` lies outside the
  range of :math:`Q` is moved by Woodbury's identity, so that the step is that of the first form
  for every loss that is a (weighted) mean of convex functions of each example's outputs:
  squared error, softmax cross-entropy, and their smoothed kin. No matrix of the size of the
  parameters squared is ever made. Beyond `max_system` equations there is no matrix at all:
  conjugate gradients solve the first form by products with :math:`J` and :math:`J^\top`.

  With `momentum` :math:`\beta`, the step goes along the average
  :math:`m_t = \beta m_{t-1} + (1 - \beta) d_t`, divided by :math:`1 - \beta^t`. A line search
  looks on the same batch for :math:`L(w + \alpha d) \le L(w) + 0.1 \, \alpha \langle
  \nabla L, d \rangle` with at most 15 changes of :math:`\alpha \le \eta`: times 0.8 where it
  fails. Adaptive damping compares the change of the loss with that of its quadratic model,

  .. math::
    \rho = \frac{L(w + \alpha d) - L(w)}{\alpha \langle \nabla L, d \rangle
      + \tfrac{1}{2} \alpha^2 d^\top J^\top Q J d},

  and multiplies :math:`\lambda` by `damping_up` if :math:`\rho < 1/4`, by `damping_down` if
  :math:`\rho > 3/4`.

  Args:
    learning_rate: :math:`\eta`, at least 0, or a schedule of the step count: the step size
      :math:`\alpha`, or the largest one of a line search.
    damping: :math:`\lambda`, above 0, or a schedule of the step count; its first value where it
      is adaptive.
    momentum: :math:`\beta`, in [0, 1).
    line_search: "none"; or it starts at 1.5 times the last step size ("increase"), at the last
      step size ("conservative", which never grows), or there and grows by 1.5 where the loss
      falls by more than 0.9 of what the slope promises ("goldstein").
    adaptive_damping: whether :math:`\lambda` follows :math:`\rho`, within [1e-12, 1e6].
    damping_up: at least 1.
    damping_down: in (0, 1].
    max_system: the largest `B * C` that is solved by Cholesky.
    cg_steps: conjugate gradients at most, beyond that size.
    independent: promises that an example's outputs depend on that example alone (no BatchNorm,
      no dropout): Jacobians are then made example by example, with a B-th of the work.

  Returns:
    A gradient transformation whose `update` needs `params` and an Oracle as `value_fn`. Its
    state's metrics hold the last step size and the damping of the next step.

  Raises:
    ValueError: an argument is out of range, a damping that is adaptive is a schedule, or
      `update` was called without `params`.
    TypeError: `value_fn` is not a `jaxrl.oracle.Oracle` with `outputs` and `loss_of` (and
      `batch`, where `independent`), or the outputs are not one array.

  Cost: one pass through the model and `B * C` backward passes (`C`, and one pass more, where
  `independent`); `4 * B * C` bytes a parameter while it runs; `O((B * C)^3)` for the solve.
  Beyond `max_system`: one pass and at most two backward passes each of the `cg_steps`, 20 bytes
  a parameter. A line search takes an evaluation for each step size that it tries, adaptive
  damping one where there is no line search. Between steps 4 bytes a parameter with momentum.

  Notes:
    The paper writes its loss for one output as :math:`\tfrac{1}{2B} \sum_i (y_i - f_i)^2`;
    `squared_error` has no factor 1/2, which doubles :math:`Q` against the same damping.
    Paper and code solve with :math:`Q J J^\top + \lambda I`, which is not symmetric.
    The damping is raised, where it is below, to 8 machine epsilons times the trace of
    :math:`A^\top J J^\top A`, so that in floating point Cholesky cannot fail; in float32 the
    direction's relative error is at most about 1e-7 times that trace over :math:`\lambda`.
    Curvature of :math:`Q` that is negative or below rounding counts as none.
    The code of 2024 disables adaptive damping; its rewrite of 2026 multiplies by 1.5 and 0.5.

  References:
    [338] Korbit, Adeoye, Bemporad, Zanon, "Exact Gauss-Newton Optimization for Training
      Deep Neural Networks", 2024, arXiv:2405.14402

  Example:
    >>> import jax, jax.numpy as jnp
    >>> from jaxrl.oracle import Oracle
    >>> x, y = jnp.array([[1.0], [2.0]]), jnp.array([[3.0], [6.0]])
    >>> loss_of = lambda z: jnp.mean((z - y) ** 2)
    >>> w = jnp.array([[0.0]])
    >>> value_fn = Oracle(lambda w: loss_of(x @ w), w, outputs=lambda w: x @ w, loss_of=loss_of)
    >>> optimizer = egn(1.0, damping=1e-6)
    >>> state = optimizer.init(w)
    >>> updates, state = optimizer.update(jax.grad(value_fn)(w), state, w, value_fn=value_fn)
    >>> print(f"{(w + updates)[0, 0]:.3f}")  # the least-squares fit y = 3x
    3.000
  """
  check.at_least("learning_rate", learning_rate, 0)
  check.above("damping", damping, 0)
  check.below("momentum", momentum, 0, 1)
  check.one_of("line_search", line_search, ("none", "increase", "conservative", "goldstein"))
  check.at_least("damping_up", damping_up, 1)
  check.above("damping_down", damping_down, 0)
  check.between("damping_down", damping_down, 0, 1)
  check.whole("max_system", max_system, 0)
  check.whole("cg_steps", cg_steps, 1)
  if adaptive_damping and callable(damping):
    raise ValueError("damping must be a number where it is adaptive, got a schedule")
  # Under optax.inject_hyperparams it is an array, which may become another one than 0.
  averaged = not isinstance(momentum, int | float) or momentum > 0

  def init_fn(params):
    zeros = jax.tree.map(jnp.zeros_like, _vectors.wide(params)) if averaged else ()
    count = jnp.zeros([], jnp.int32)
    return EgnState(count, zeros, _metrics(_at(learning_rate, count), _at(damping, count)))

  def update_fn(updates, state, params=None, *, value_fn=None, **extra_args):
    del extra_args
    check.params("egn", params)
    value_fn = oracle.need_oracle("egn", value_fn)
    at, count = _vectors.wide(params), optax.safe_increment(state.count)
    if _vectors.size(at) == 0:
      return updates, state._replace(count=count)
    ridge = state.metrics["damping"] if adaptive_damping else _at(damping, state.count)
    model = _model(value_fn, at)
    if model.outputs.size > max_system:
      direction = _by_conjugate_gradients(model, ridge, cg_steps)
    else:
      direction = _by_cholesky(model, _jacobian(value_fn, at, model, independent), ridge)
    velocity = state.velocity
    if averaged:
      velocity = jax.tree.map(
        lambda m, d: (momentum * m + (1 - momentum) * d).astype(m.dtype), velocity, direction
      )
      direction = _vectors.scaled(1 / (1 - momentum ** jnp.asarray(count, float)), velocity)

    ray = _ray(value_fn, at, model, direction)
    rate, after = _at(learning_rate, state.count), None
    if line_search != "none":
      rate, after = _searched(ray, state.metrics["step_size"], rate, line_search)
    if adaptive_damping:
      ratio = _gain(model, direction, ray, rate, ray.value_at(rate) if after is None else after)
      ridge = _adapted(ridge, ratio, damping_up, damping_down)
    updates = jax.tree.map(lambda d, w: (rate * d).astype(w.dtype), direction, params)
    return updates, EgnState(count, velocity, _metrics(rate, ridge))

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _at(value: Any, count: Any) -> Any:
  return value(count) if callable(value) else value


def _metrics(step_size: Any, damping: Any) -> dict[str, jax.Array]:
  values = {"step_size": step_size, "damping": damping}
  return {name: jnp.asarray(value, float) for name, value in values.items()}


# The direction.


def _model(value_fn: oracle.Oracle, params: Any) -> _Model:
  outputs, pull = jax.vjp(lambda params: _wide_outputs(value_fn, params), params)
  return _Model(outputs, lambda change: pull(change)[0], value_fn.loss_of)


def _wide_outputs(value_fn: oracle.Oracle, params: Any, *inputs: Any) -> jax.Array:
  """Outputs in float32, or wider."""
  outputs = value_fn.outputs(params, *inputs)
  if not isinstance(outputs, jax.Array):
    raise TypeError(f"egn needs a model with one output array, got {jax.tree.structure(outputs)}")
  return _vectors.wide(outputs)


def _jacobian(value_fn: oracle.Oracle, params: Any, model: _Model, independent: bool) -> Any:
  """Of the outputs: leaves `[B * C, *leaf]`."""
  size = model.outputs.size
  if not independent:
    basis = jnp.eye(size, dtype=model.outputs.dtype).reshape(size, *model.outputs.shape)
    return jax.vmap(model.pull)(basis)

  def of_example(params, inputs):
    return _wide_outputs(value_fn, params, inputs[None]).reshape(-1)

  inputs = value_fn.batch["inputs"]
  rows = jax.vmap(jax.jacrev(of_example), in_axes=(None, 0))(params, inputs)
  return jax.tree.map(lambda j, w: j.reshape(size, *w.shape), rows, params)


def _by_cholesky(model: _Model, jacobian: Any, damping: jax.typing.ArrayLike) -> Any:
  """The exact direction, by the system in the space of the outputs."""
  size = model.outputs.size
  gram = _gram(jacobian, size).astype(model.outputs.dtype)
  root, solved, rest = _root(_curvature(model), model.residual())

  def factor_of(vectors):  # A^T times the columns
    blocks = vectors.reshape(*root.shape[:2], -1)
    return jnp.einsum("bij,bin->bjn", root, blocks, precision="highest").reshape(vectors.shape)

  def factor(vector):  # A times a vector
    blocks = vector.reshape(root.shape[:2])
    return jnp.einsum("bij,bj->bi", root, blocks, precision="highest").reshape(-1)

  system = factor_of(factor_of(gram).T)
  guard = _GUARD * jnp.finfo(system.dtype).eps * jnp.trace(system)
  ridge = jnp.maximum(damping, guard).astype(system.dtype)
  cholesky = jax.scipy.linalg.cho_factor(system + ridge * jnp.eye(size, dtype=system.dtype))
  unseen = factor_of(jnp.matmul(gram, rest, precision="highest"))
  inside, outside = jax.scipy.linalg.cho_solve(cholesky, jnp.stack([solved, unseen], axis=1)).T
  weights = factor(inside) + (rest - factor(outside)) / ridge
  return model.pull(-weights.reshape(model.outputs.shape))


def _gram(jacobian: Any, size: int) -> jax.Array:
  """J J^T, summed over the leaves."""
  rows = [leaf.reshape(size, -1) for leaf in jax.tree.leaves(jacobian)]
  products = [jnp.matmul(r, r.T, precision="highest") for r in rows]
  return sum(products, start=jnp.zeros((size, size)))


def _curvature(model: _Model) -> jax.Array:
  """The Hessian blocks `[B, C, C]` of the loss at the outputs."""
  examples = model.outputs.shape[0]
  size = model.outputs.size // examples

  def column(direction):
    change = jnp.broadcast_to(direction, (examples, size)).reshape(model.outputs.shape)
    return model.bent(change).reshape(examples, size)

  return jax.vmap(column, out_axes=-1)(jnp.eye(size, dtype=model.outputs.dtype))


def _root(curvature: jax.Array, residual: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
  """A `[B, C, C]` with A A^T = Q, s `[B * C]`, and what of the residual is not A s `[B * C]`."""
  values, vectors = jnp.linalg.eigh(curvature)
  least = values.shape[-1] * jnp.finfo(values.dtype).eps * jnp.max(values, axis=-1, keepdims=True)
  kept = values > jnp.maximum(least, 0)
  roots = jnp.sqrt(jnp.where(kept, values, 0))
  parts = jnp.einsum("bij,bi->bj", vectors, residual.reshape(values.shape), precision="highest")
  rest = jnp.einsum("bij,bj->bi", vectors, jnp.where(kept, 0, parts), precision="highest")
  solved = reduce.ratio(jnp.where(kept, parts, 0), roots)
  return vectors * roots[:, None, :], solved.reshape(-1), rest.reshape(-1)


def _by_conjugate_gradients(model: _Model, damping: jax.typing.ArrayLike, steps: int) -> Any:
  """The direction by products with the Gauss-Newton matrix, up to the solver's tolerance."""
  gradient = model.pull(model.residual())

  def damped(vector):
    bent = model.pull(model.bent(model.push(vector)))
    return jax.tree.map(lambda b, v: (b + damping * v).astype(v.dtype), bent, vector)

  # Of unit length, so that its square neither overflows nor underflows.
  unit, _ = jax.scipy.sparse.linalg.cg(damped, _vectors.unit(gradient), tol=1e-6, maxiter=steps)
  return _vectors.scaled(-_vectors.norm(gradient), unit)


# The step size and the damping.


class _Ray(NamedTuple):
  """The loss along the direction: at 0, its slope there, and at any step size."""

  value: jax.Array
  slope: jax.Array
  value_at: Callable[[Any], jax.Array]


def _ray(value_fn: oracle.Oracle, params: Any, model: _Model, direction: Any) -> _Ray:
  def value_at(step):  # by the outputs: workers with their own search without the others
    return model.loss_of(_wide_outputs(value_fn, _vectors.moved(params, step, direction)))

  slope = jnp.vdot(model.residual(), model.push(direction), precision="highest")
  return _Ray(model.loss_of(model.outputs), slope, value_at)


def _searched(ray: _Ray, last: jax.Array, most: Any, kind: str) -> tuple[jax.Array, jax.Array]:
  """A step size that passes Armijo's test, and the loss after it."""
  most = jnp.asarray(most, last.dtype)
  eps = jnp.finfo(ray.value.dtype).eps

  def changed(factor, step):
    step = jnp.minimum(factor * step, most)
    return step, ray.value_at(step)

  def search(carry):
    tried, step, after, _ = carry
    # Said so that a loss that is no number fails.
    short = ~(ray.value - after + eps >= -_ARMIJO * step * ray.slope)
    step, after = jax.lax.cond(short, lambda: changed(_SHORTER, step), lambda: (step, after))
    if kind == "goldstein":
      long = ray.value - after > -(1 - _ARMIJO) * step * ray.slope
      step, after = jax.lax.cond(long, lambda: changed(_LONGER, step), lambda: (step, after))
      short |= long
    return tried + 1, step, after, short

  start = jnp.minimum(_LONGER * last if kind == "increase" else last, most)
  carry = jnp.zeros([], jnp.int32), start, ray.value_at(start), jnp.ones([], bool)
  _, step, after, _ = jax.lax.while_loop(lambda c: c[-1] & (c[0] < _SEARCHES), search, carry)
  return step, after


def _gain(model: _Model, direction: Any, ray: _Ray, step: Any, after: jax.Array) -> jax.Array:
  """The change of the loss over that of its quadratic model."""
  change = step * model.push(direction)
  bent = jnp.vdot(change, model.bent(change), precision="highest")
  return (after - ray.value) / (step * ray.slope + bent / 2)


def _adapted(damping: jax.Array, ratio: jax.Array, up: Any, down: Any) -> jax.Array:
  factor = jnp.where(ratio < 0.25, up, jnp.where(ratio > 0.75, down, 1.0))
  return jnp.clip(factor * damping, _LEAST_DAMPING, _MOST_DAMPING)
