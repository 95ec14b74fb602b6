"""Weight normalization: train the length of each unit's weights apart from their direction."""

import numbers
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ._reparameterization import Reparameterization


class Polar(NamedTuple):
  """The coordinates of one kernel: v, of its shape, and g, one for each unit."""

  direction: Any
  scale: Any


def weight_norm(axis: int = -1) -> Reparameterization:
  r"""Weights of each unit as a length times a direction.

  .. math::
    w = g \, v / \|v\|_2, \qquad
    \nabla_g L = \langle \nabla_w L, v \rangle / \|v\|, \qquad
    \nabla_v L = \frac{g}{\|v\|} \nabla_w L - \frac{g \nabla_g L}{\|v\|^2} v

  The gradient of :math:`v` is orthogonal to :math:`v`, so that gradient descent lets
  :math:`\|v\|` grow and the effective rate with it fall: the method is robust to rates that
  are too large. Train with `optimizers.reparameterized.reparameterized`, or wrap a Flax layer
  in `jaxrl.models.Reparameterized`. The paper's initialisation, by which a batch gets
  pre-activations of mean 0 and variance 1, is that of `jaxrl.models.WeightNormalized`.

  Args:
    axis: of the units in each kernel; norms are taken over all others. The last one in Flax.

  Returns:
    A Reparameterization, which starts at :math:`v = w`, :math:`g = \|w\|`. Kernels are the
    arrays of two or more axes.

  Raises:
    ValueError: `axis` is no whole number; or from `init`, a kernel has no such axis.

  Cost: 4 bytes for each unit; elementwise work and a reduction over each kernel.

  Notes:
    As in the official optimizers for Keras, `v` starts at the weights that there are. The
    paper draws it from N(0, 0.05^2): the scale of `v` changes nothing but the rate at which
    directions move. Where all weights of a unit are zero, any direction will do, and `v` is
    one throughout. Weight decay on `v` has no effect on the network but its rate: decay the
    weights outside of `reparameterized`.

  References:
    [344] Salimans, Kingma, "Weight Normalization: A Simple Reparameterization to Accelerate
      Training of Deep Neural Networks", 2016, arXiv:1602.07868

  Example:
    >>> import jax.numpy as jnp
    >>> by = weight_norm()
    >>> raw = by.init({"kernel": jnp.array([[3.0], [4.0]])})
    >>> float(raw["kernel"].scale[0, 0])
    5.0
    >>> longer = raw["kernel"]._replace(scale=jnp.array([[10.0]]))
    >>> print(by.weights({"kernel": longer})["kernel"].ravel())
    [6. 8.]
  """
  if isinstance(axis, bool) or not isinstance(axis, numbers.Integral):
    raise ValueError(f"axis must be a whole number, got {axis!r}")

  def polar(kernel):
    if jnp.ndim(kernel) < 2:
      return kernel
    if not -jnp.ndim(kernel) <= axis < jnp.ndim(kernel):
      raise ValueError(f"axis must be one of a kernel of shape {kernel.shape}, got {axis}")
    length = _length(kernel.astype(_wide(kernel)), _others(kernel))
    direction = jnp.where(length == 0, 1, kernel).astype(kernel.dtype)
    return Polar(direction, length.astype(kernel.dtype))

  def weights(node):
    if not isinstance(node, Polar):
      return node
    unit = _unit(node.direction.astype(_wide(node.direction)))
    return (node.scale * unit).astype(node.direction.dtype)

  def _others(kernel):
    return tuple(i for i in range(kernel.ndim) if i != axis % kernel.ndim)

  def _unit(direction):
    """v / |v|, of which only the direction matters: scaled first, no square overflows."""
    others = _others(direction)
    largest = jnp.max(jnp.abs(direction), axis=others, keepdims=True, initial=0)
    scaled = direction / jax.lax.stop_gradient(jnp.where(largest == 0, 1, largest))
    return scaled / _length(scaled, others)

  return Reparameterization(
    init=lambda params: jax.tree.map(polar, params),
    weights=lambda raw: jax.tree.map(weights, raw, is_leaf=lambda node: isinstance(node, Polar)),
  )


def _length(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
  return jnp.sqrt(jnp.sum(x**2, axis=axes, keepdims=True))


def _wide(x: jax.Array) -> Any:
  return jnp.promote_types(x.dtype, jnp.float32)
