"""Natural rounding: send signs and exponents, no mantissa."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ._compressor import Compressor


class NaturalMessage(NamedTuple):
  """What `natural_rounding` sends: `exponents [d]` of 8 bits, and `signs [ceil(d / 8)]`."""

  exponents: jax.Array
  signs: jax.Array


def natural_rounding(*, random: bool = True) -> Compressor:
  r"""Rounds each entry to a power of two, one of the two next to it.

  Up with the probability that makes the mean right, after which

  .. math::
    C(x) = \tfrac89 \, \mathrm{round}(x), \qquad
    \mathbb{E} \, \mathrm{round}(x) = x, \qquad
    \mathbb{E} \|C(x) - x\|^2 \le \tfrac19 \|x\|^2;

  or to the nearest, as :math:`C(x) = \mathrm{round}(x)` with
  :math:`\|C(x) - x\|^2 \le \tfrac19 \|x\|^2`.

  Args:
    random: whether it draws; another number for each entry and worker.

  Returns:
    A Compressor with :math:`\alpha = 8 / 9`.

  Cost: a message of 9 bits an entry: an exponent in one byte, and a sign in a packed bit.

  Notes:
    The rounding alone has variance at most :math:`\|x\|^2 / 8`. The factor 8 / 9, which the
    receiver applies, makes the least contraction of it.
    What float32 has no normal number for is sent as zero, and magnitudes from
    :math:`2^{127}` as that.

  References:
    Baseline: Horváth, Ho, Horváth, Sahu, Canini, Richtárik, "Natural Compression for
      Distributed Deep Learning", 2019, arXiv:1905.10988

  Example:
    >>> import jax.numpy as jnp
    >>> compressor = natural_rounding(random=False)
    >>> message = compressor.compress(jnp.array([1.0, -5.0, 0.4, 0.0]))
    >>> print(message.exponents, compressor.add(jnp.zeros(4), message, 1.0))
    [127 129 126   0] [ 1.  -4.   0.5  0. ]
  """

  def compress(x, key: Any = None):
    flat = x.reshape(-1).astype(jnp.float32)
    bits = jax.lax.bitcast_convert_type(jnp.abs(flat), jnp.uint32)
    exponents = bits >> 23
    fraction = (bits & (2**23 - 1)).astype(jnp.float32) / 2**23
    least = jax.random.uniform(key, flat.shape, jnp.float32) if random else 0.5
    normal = (exponents > 0) & (exponents < 254)  # 255 is infinite
    exponents += ((fraction > least) & normal).astype(jnp.uint32)
    return NaturalMessage(exponents.astype(jnp.uint8), jnp.packbits(flat < 0))

  def add(total, message, scale):
    bits = message.exponents.astype(jnp.uint32) << 23
    magnitudes = jax.lax.bitcast_convert_type(bits, jnp.float32)
    negative = jnp.unpackbits(message.signs, count=total.size) == 1
    rounded = jnp.where(negative, -magnitudes, magnitudes).reshape(total.shape)
    return total + (scale * (8 / 9 if random else 1.0) * rounded).astype(total.dtype)

  return Compressor(compress, add, lambda size: 8 / 9, "own" if random else "no")
