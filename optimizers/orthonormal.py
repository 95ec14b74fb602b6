"""Orthonormal filters, and backward errors that keep their size: very deep plain networks."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxrl import check, reduce


class OrthonormalState(NamedTuple):
  """State of `orthonormal`: the count of updates."""

  count: jax.typing.ArrayLike


def orthonormal(
  strength: float | optax.Schedule = 1e-4,
) -> optax.GradientTransformationExtraArgs:
  r"""Adds to the gradient a pull of each layer's filters towards orthonormality.

  .. math::
    u = g + \nabla_W \frac{\lambda}{2} \|W^\top W - I\|_F^2 = g + 2 \lambda W (W^\top W - I)

  The columns of :math:`W` are the filters: a kernel `[..., inputs, filters]` is one matrix.
  It takes the place of weight decay, in front of the momentum:
  `orthonormal(1e-4) | sgd(0.1, momentum=0.9)`.

  Args:
    strength: :math:`\lambda`, at least 0, or a schedule of the step count.

  Returns:
    A gradient transformation whose `update` needs `params`.

  Raises:
    ValueError: `strength` is negative, or `update` was called without `params`.

  Cost: no gradient evaluation; for each kernel twice the product of its size and its number of
  filters; 4 bytes in all.

  Notes:
    More filters than inputs cannot all be orthonormal: they are taken in groups, in order, of
    as many as there are inputs. The regulariser, its groups and the order of its strength are
    those of the paper's abstract and of other people's reports; the text and code of the
    paper were not at hand.
    It is the kernel as a matrix that becomes orthonormal, not the convolution as an operator.

  References:
    [337] Xie, Xiong, Pu, "All You Need is Beyond a Good Init: Exploring Better Solution for
      Training Extremely Deep Convolutional Neural Networks with Orthonormality and
      Modulation", 2017, arXiv:1703.01827

  Example:
    >>> import jax.numpy as jnp
    >>> optimizer = orthonormal(strength=0.1)
    >>> kernel = jnp.array([[2.0, 0.0], [0.0, 1.0]])
    >>> state = optimizer.init(kernel)
    >>> updates, state = optimizer.update(jnp.zeros((2, 2)), state, kernel)
    >>> print(updates)  # 2 * 0.1 * 2 * (2**2 - 1)
    [[1.2 0. ]
     [0.  0. ]]
  """
  check.at_least("strength", strength, 0)

  def init_fn(params):
    del params
    return OrthonormalState(jnp.zeros([], jnp.int32))

  def update_fn(updates, state, params=None, **extra_args):
    del extra_args
    check.params("orthonormal", params)
    scale = strength(state.count) if callable(strength) else strength
    pull = jax.grad(orthonormality)(params)
    updates = jax.tree.map(lambda g, p: (g + scale * p).astype(g.dtype), updates, pull)
    return updates, OrthonormalState(optax.safe_increment(state.count))

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def orthonormality(params: Any) -> jax.Array:
  r"""How far the filters of all kernels are from being orthonormal.

  .. math::
    \tfrac12 \sum_l \|W_l^\top W_l - I\|_F^2

  Args:
    params: a tree; its arrays of two or more axes are the kernels, with the filters last.

  Returns:
    A scalar, in float32 or wider.

  Cost: for each kernel the product of its size and its number of filters.

  References:
    [337] Xie, Xiong, Pu, "All You Need is Beyond a Good Init: Exploring Better Solution for
      Training Extremely Deep Convolutional Neural Networks with Orthonormality and
      Modulation", 2017, arXiv:1703.01827

  Example:
    >>> import jax.numpy as jnp
    >>> float(orthonormality({"kernel": 2.0 * jnp.eye(3), "bias": jnp.ones(3)}))  # 3 * 3**2 / 2
    13.5
  """
  return sum((_defect(kernel) for kernel in _kernels(params)), start=jnp.zeros(()))


def orthonormalized(params: Any) -> Any:
  r"""Parameters whose kernels have orthonormal filters: a start for `orthonormal`.

  .. math::
    W = Q R, \; \mathrm{diag}(R) > 0, \qquad W \mapsto Q

  From normally distributed kernels it draws from all orthonormal ones alike.

  Args:
    params: a tree; its arrays of two or more axes are the kernels, with the filters last. The
      rest stays as it is.

  Returns:
    A tree of the same shapes and dtypes. More filters than inputs are orthonormal within
    groups, as in `orthonormal`.

  Cost: a QR decomposition of each kernel.

  References:
    [337] Xie, Xiong, Pu, "All You Need is Beyond a Good Init: Exploring Better Solution for
      Training Extremely Deep Convolutional Neural Networks with Orthonormality and
      Modulation", 2017, arXiv:1703.01827

  Example:
    >>> import jax.numpy as jnp
    >>> print(orthonormalized(jnp.array([[3.0], [4.0]])).ravel())
    [0.6 0.8]
  """

  def of_group(matrix):
    q, r = jnp.linalg.qr(matrix)
    return q * jnp.where(jnp.diagonal(r) < 0, -1, 1)[None]

  def of_kernel(kernel):
    if jnp.ndim(kernel) < 2 or not kernel.size:
      return kernel
    matrix = _matrix(kernel)
    inputs, filters = matrix.shape
    groups = [of_group(matrix[:, i : i + inputs]) for i in range(0, filters, inputs)]
    return jnp.concatenate(groups, axis=1).reshape(kernel.shape).astype(kernel.dtype)

  return jax.tree.map(of_kernel, params)


def modulated(
  block: Callable[[jax.Array], jax.Array], *, tau: float = 1.1
) -> Callable[[jax.Array], jax.Array]:
  r"""`block`, through which backward errors go without growing or shrinking much.

  With :math:`\delta_{\mathrm{out}}` the error behind the block, that is the derivative of the
  loss by its outputs, and :math:`\delta_{\mathrm{in}}` the one that the block makes of it,

  .. math::
    q = \mathrm{rms}(\delta_{\mathrm{in}}) / \mathrm{rms}(\delta_{\mathrm{out}}), \qquad
    \delta_{\mathrm{in}} \leftarrow \delta_{\mathrm{in}} / q
    \quad \text{unless } 1 / \tau \le q \le \tau

  over the whole batch. Outputs stay as they are, and so do the gradients of the block's own
  parameters for a given error behind it. It goes around each repetition of a deep network,
  such as Conv-BatchNorm-ReLU, in plain JAX or inside a Flax module.

  Args:
    block: a function of one array, with one array as its result.
    tau: at least 1; 1 restores every error.

  Returns:
    A function like `block`.

  Raises:
    ValueError: `tau` is below 1.

  Cost: a reduction over the errors at both ends, and a pass over one.

  Notes:
    Unsure: the abstract says that errors are modulated by the assumption that two consecutive
    layers are nearly isometric. The ratio of root mean squares, the band around 1 and its
    default are ours. Where training modulates for its first part only, two
    models share their parameters.

  References:
    [337] Xie, Xiong, Pu, "All You Need is Beyond a Good Init: Exploring Better Solution for
      Training Extremely Deep Convolutional Neural Networks with Orthonormality and
      Modulation", 2017, arXiv:1703.01827

  Example:
    >>> import jax, jax.numpy as jnp
    >>> deep = lambda x: modulated(lambda x: 0.01 * x)(modulated(lambda x: 0.01 * x)(x))
    >>> print(f"{jax.grad(lambda x: jnp.sum(deep(x)))(jnp.ones(3))[0]:.4f}")
    1.0000
  """
  check.at_least("tau", tau, 1)

  def run(x):
    entered: Any = _enter(tau, x)
    x, probe = entered
    return _leave(block(x), probe)

  return run


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _enter(tau: float, x: jax.Array) -> tuple[jax.Array, jax.Array]:
  """`x`, and a probe, by which the power of the error behind the block comes back."""
  del tau
  return x, jnp.zeros([])


def _enter_forward(tau, x):
  return _enter(tau, x), None


def _enter_backward(tau, _, cotangents):
  error, behind = cotangents
  here = _power(error)
  unknown = (here == 0) | (behind == 0)
  q = jnp.sqrt(jnp.where(unknown, 1, here) / jnp.where(unknown, 1, behind))
  factor = jnp.where((q < 1 / tau) | (q > tau), 1 / q, 1)
  return ((factor * error).astype(error.dtype),)


_enter.defvjp(_enter_forward, _enter_backward)


@jax.custom_vjp
def _leave(x: jax.Array, probe: jax.Array) -> jax.Array:
  del probe
  return x


def _leave_forward(x, probe):
  return _leave(x, probe), None


def _leave_backward(_, error):
  return error, _power(error)


_leave.defvjp(_leave_forward, _leave_backward)


def _power(error: jax.Array) -> jax.Array:
  """The mean square over the whole batch."""
  total = reduce.batch_sum(error.astype(jnp.float32) ** 2)
  return total / max(1, error.size * reduce.workers())


def _kernels(params: Any) -> list[jax.Array]:
  return [leaf for leaf in jax.tree.leaves(params) if jnp.ndim(leaf) > 1 and leaf.size]


def _matrix(kernel: jax.Array) -> jax.Array:
  wide = kernel.astype(jnp.promote_types(kernel.dtype, jnp.float32))
  return wide.reshape(-1, kernel.shape[-1])


def _defect(kernel: jax.Array) -> jax.Array:
  """Half of |W^T W - I|^2, where pairs of filters of different groups don't count."""
  matrix = _matrix(kernel)
  inputs, filters = matrix.shape
  group = np.arange(filters) // inputs
  gram = jnp.matmul(matrix.T, matrix, precision="highest") - jnp.eye(filters, dtype=matrix.dtype)
  return jnp.sum(jnp.where(group[:, None] == group[None, :], gram, 0) ** 2) / 2
