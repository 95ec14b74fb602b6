"""LSQ: weights of a few bits, on levels whose distance is learned."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrl import check

from ._quantization import all_but, check_axis, mean_magnitude, straight_through
from ._reparameterization import Reparameterization

_SMALLEST = 1e-5  # of a scale


class Stepped(NamedTuple):
  """The coordinates of one kernel: v, of its shape, and s, the distance of its levels."""

  raw: Any
  scale: Any


def lsq(bits: int = 4, axis: int | None = None) -> Reparameterization:
  r"""Weights rounded to :math:`2^b` multiples of a step that gradient descent learns.

  With :math:`Q_n = 2^{b-1}`, :math:`Q_p = 2^{b-1} - 1` and N weights that share a step s,

  .. math::
    w &= s \, \mathrm{round}(\mathrm{clip}(v / s, -Q_n, Q_p)), \qquad
    \frac{\partial w}{\partial v} := [-Q_n \le v / s \le Q_p], \\
    \nabla_s L &:= \frac{1}{\sqrt{N Q_p}} \sum \nabla_w L \cdot
    \begin{cases}
      \mathrm{round}(v / s) - v / s & -Q_n \le v / s \le Q_p \\
      \mathrm{clip}(v / s, -Q_n, Q_p) & \text{else}
    \end{cases}

  Train with `optimizers.reparameterized.reparameterized`, or wrap a Flax layer in
  `jaxrl.models.Reparameterized`.

  Args:
    bits: b, at least 2.
    axis: of the units, each with a step of its own; one step for a whole kernel by default.

  Returns:
    A Reparameterization, which starts at :math:`v = w`,
    :math:`s = 2 \, \mathrm{mean}|w| / \sqrt{Q_p}`: weights move to their levels in the first
    step. Kernels are the arrays of two or more axes.

  Raises:
    ValueError: `bits` is no whole number of at least 2, or `axis` neither one nor `None`; or a
      kernel has no such axis.

  Cost: 4 bytes for each step; elementwise work and a reduction over each kernel.

  Notes:
    Steps below 1e-5 count as 1e-5, and still learn. Weight decay inside of `reparameterized`
    acts on steps as well, and is better left out. The paper trains by SGD with momentum 0.9.

  References:
    Baseline: Esser, McKinstry, Bablani, Appuswamy, Modha, "Learned Step Size Quantization", 2019,
      arXiv:1902.08153

  Example:
    >>> import jax.numpy as jnp
    >>> by = lsq(bits=2)
    >>> raw = by.init(jnp.array([[0.5, -1.5, 0.2, 1.8]]))
    >>> print(raw.scale, by.weights(raw))
    2.0 [[ 0. -2.  0.  2.]]
  """
  check.whole("bits", bits, 2)
  if axis is not None:
    check_axis(axis)
  low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1

  def stepped(kernel):
    if jnp.ndim(kernel) < 2:
      return kernel
    axes = None if axis is None else all_but(axis, kernel)
    scale = 2 * mean_magnitude(kernel, axes) / math.sqrt(high)
    return Stepped(kernel, scale.astype(kernel.dtype))

  def clipped(node, scale):
    return jnp.clip(node.raw / scale, low, high)

  def weights(node):
    if not isinstance(node, Stepped):
      return node
    sharing = node.raw.size / max(node.scale.size, 1)
    scale = straight_through(node.scale, jnp.maximum(node.scale, _SMALLEST))
    scale = _scaled_gradient(scale, 1 / math.sqrt(max(sharing, 1) * high))
    place = clipped(node, scale)
    return scale * straight_through(place, jnp.round(place))

  def codes(raw):
    nodes = [node for node in jax.tree.leaves(raw, is_leaf=_is_stepped) if _is_stepped(node)]
    places = (clipped(node, jnp.maximum(node.scale, _SMALLEST)) for node in nodes)
    return tuple(jnp.round(place).astype(jnp.int32) for place in places)

  return Reparameterization(
    init=lambda params: jax.tree.map(stepped, params),
    weights=lambda raw: jax.tree.map(weights, raw, is_leaf=_is_stepped),
    codes=codes,
  )


def _is_stepped(node: Any) -> bool:
  return isinstance(node, Stepped)


def _scaled_gradient(x: jax.Array, factor: float) -> jax.Array:
  """`x`, whose gradient is multiplied by a factor."""
  return straight_through(factor * x, x)
