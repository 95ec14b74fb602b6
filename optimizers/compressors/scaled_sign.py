"""Scaled sign: send one bit an entry, and the mean magnitude."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from ._compressor import Compressor


class SignMessage(NamedTuple):
  """What `scaled_sign` sends: the mean magnitude `scale []`, and `bits [ceil(d / 8)]`."""

  scale: jax.Array
  bits: jax.Array


def scaled_sign() -> Compressor:
  r"""Keeps the sign of each entry, and the mean magnitude of the array.

  .. math::
    C(x) = \frac{\|x\|_1}{d} \, \mathrm{sign}(x), \qquad
    \|C(x) - x\|^2 = \|x\|^2 - \|x\|_1^2 / d \le (1 - 1 / d) \|x\|^2

  with :math:`d` the size of the array, one leaf of the parameters, and sign(0) = 1, as one
  bit has no third value.

  Returns:
    A Compressor with :math:`\alpha = 1 / d`, the worst case. On an array whose entries are
    of one magnitude the error is zero.

  Cost: a message of one bit an entry, packed into bytes, and 4 bytes.

  References:
    Baseline: Karimireddy, Rebjock, Stich, Jaggi, "Error Feedback Fixes SignSGD and other
      Gradient Compression Schemes", 2019, arXiv:1901.09847

  Example:
    >>> import jax.numpy as jnp
    >>> compressor = scaled_sign()
    >>> message = compressor.compress(jnp.array([1.0, -5.0, 0.5, 3.5]))
    >>> print(message.bits, compressor.add(jnp.zeros(4), message, 1.0))
    [176] [ 2.5 -2.5  2.5  2.5]
    >>> compressor.alpha(4)
    0.25
  """

  def compress(x):
    flat = x.reshape(-1)
    scale = jnp.sum(jnp.abs(flat) / max(flat.size, 1))  # divided first: the sum may overflow
    return SignMessage(scale, jnp.packbits(flat >= 0))

  def add(total, message, scale):
    positive = jnp.unpackbits(message.bits, count=total.size).reshape(total.shape) == 1
    step = scale * message.scale
    return total + jnp.where(positive, step, -step).astype(total.dtype)

  return Compressor(compress, add, lambda size: 1 / max(size, 1))
