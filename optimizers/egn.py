"""Exact Gauss-Newton: curvature in the space of the outputs, not of the parameters."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxrl import check, oracle

replaces_gradient = True


class EgnState(NamedTuple):
  """State of `egn`."""

  count: jax.typing.ArrayLike


def egn(
  learning_rate: float | optax.Schedule, damping: float | optax.Schedule = 1.0
) -> optax.GradientTransformationExtraArgs:
  r"""Gauss-Newton steps, exact for this batch, by a system of the size of the outputs.

  With outputs :math:`z \in R^{B \times C}` of the batch, their Jacobian :math:`J`, and
  the gradient :math:`r` and Hessian :math:`Q` of the scalar loss with respect to
  :math:`z` (:math:`Q` is a block of size C for each example),

  .. math::
    d = -(J^\top Q J + \lambda I)^{-1} J^\top r = -J^\top (Q J J^\top + \lambda I)^{-1} r,
    \qquad w \leftarrow w + \eta d.

  The second form needs a system of `B * C` equations however large the model is. It holds
  for losses that are a (weighted) mean of convex functions of each example's outputs:
  squared error, softmax cross-entropy.

  Args:
    learning_rate: :math:`\eta`, at least 0, or a schedule of the step count.
    damping: :math:`\lambda`, above 0, or a schedule of the step count.

  Returns:
    A gradient transformation whose `update` needs `params` and an Oracle as `value_fn`.

  Raises:
    ValueError: an argument is out of range, or `update` was called without `params`.
    TypeError: `value_fn` is not a `jaxrl.oracle.Oracle` with `outputs` and `loss_of`, or
      the outputs are not one array.

  Cost: one pass through the model and `B * C` backward passes; `4 * B * C` bytes a
  parameter while it runs, none between steps; `O((B * C)^3)` for the solve.

  Notes:
    The paper writes its loss for one output as :math:`\tfrac{1}{2B} \sum_i (y_i - f_i)^2`;
    `squared_error` has no factor 1/2, which doubles :math:`Q` against the same damping.
    In float32 the direction's relative error is about 2e-8 / :math:`\lambda` once there are
    more outputs than parameters: keep the damping above 1e-4 there.
    The system is solved as it stands, by LU, since :math:`Q J J^\top` is not symmetric.
    The paper's momentum, line search and adaptive damping are not part of this function.

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

  def init_fn(params):
    del params
    return EgnState(count=jnp.zeros([], jnp.int32))

  def update_fn(updates, state, params=None, *, value_fn=None, **extra_args):
    del updates, extra_args
    check.params("egn", params)
    value_fn = oracle.need_oracle("egn", value_fn)
    step = learning_rate(state.count) if callable(learning_rate) else learning_rate
    ridge = damping(state.count) if callable(damping) else damping
    direction = _direction(value_fn, params, ridge)
    updates = jax.tree.map(lambda d, w: (step * d).astype(w.dtype), direction, params)
    return updates, EgnState(optax.safe_increment(state.count))

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _direction(value_fn: oracle.Oracle, params: Any, damping: jax.typing.ArrayLike) -> Any:
  outputs, jacobian = _outputs_and_jacobian(value_fn, params)
  residual, curvature = _loss_derivatives(value_fn.loss_of, outputs)
  kernel = _gram(jacobian, outputs.size)
  blocks = kernel.reshape(*curvature.shape[:2], outputs.size)
  system = jnp.einsum("bij,bjn->bin", curvature, blocks, precision="highest")
  system = system.reshape(kernel.shape) + damping * jnp.eye(outputs.size)
  weights = jnp.linalg.solve(system, -residual)
  return jax.tree.map(lambda j: jnp.tensordot(weights, j, axes=1, precision="highest"), jacobian)


def _outputs_and_jacobian(value_fn: oracle.Oracle, params: Any) -> tuple[jax.Array, Any]:
  """Outputs in float32, and their Jacobian: leaves `[B * C, *leaf]`."""

  def wide_outputs(params):
    outputs = value_fn.outputs(params)
    if not isinstance(outputs, jax.Array):
      raise TypeError(f"egn needs a model with one output array, got {jax.tree.structure(outputs)}")
    return outputs.astype(jnp.promote_types(outputs.dtype, jnp.float32))

  outputs, pullback = jax.vjp(wide_outputs, params)
  basis = jnp.eye(outputs.size, dtype=outputs.dtype).reshape(outputs.size, *outputs.shape)
  (jacobian,) = jax.vmap(pullback)(basis)
  return outputs, jax.tree.map(lambda j: j.astype(outputs.dtype), jacobian)


def _loss_derivatives(
  loss_of: Callable[[jax.Array], jax.Array], outputs: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Gradient `[B * C]` and Hessian blocks `[B, C, C]` of the loss at the outputs."""
  examples = outputs.shape[0]
  size = outputs.size // examples
  gradient = jax.grad(loss_of)

  def column(direction):
    tangent = jnp.broadcast_to(direction, (examples, size)).reshape(outputs.shape)
    return jax.jvp(gradient, (outputs,), (tangent,))[1].reshape(examples, size)

  curvature = jax.vmap(column, out_axes=-1)(jnp.eye(size, dtype=outputs.dtype))
  return gradient(outputs).reshape(-1), curvature


def _gram(jacobian: Any, size: int) -> jax.Array:
  """J J^T, summed over the leaves."""
  rows = [leaf.reshape(size, -1) for leaf in jax.tree.leaves(jacobian)]
  products = [jnp.matmul(r, r.T, precision="highest") for r in rows]
  return sum(products, start=jnp.zeros((size, size)))
