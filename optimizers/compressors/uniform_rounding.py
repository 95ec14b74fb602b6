"""Uniform rounding: send the multiples of a step that is a fraction of the largest entry."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrl import check

from ._compressor import Compressor


class UniformMessage(NamedTuple):
  """What `uniform_rounding` sends: the `step []` and its `multiples [d]` of 8 bits."""

  step: jax.Array
  multiples: jax.Array


def uniform_rounding(levels: int = 127, *, random: bool = False) -> Compressor:
  r"""Rounds each entry to a multiple of the largest magnitude over a number of levels.

  With the step :math:`\delta = \|x\|_\infty / s` of s levels, to the nearest multiple:

  .. math::
    C(x)_j = \delta \, \mathrm{round}(x_j / \delta), \qquad
    \|C(x) - x\|^2 \le (1 - \alpha) \|x\|^2, \quad \alpha = \frac1{1 + (d - 1) / (4 s^2)};

  or at random to one of the two next to it, so that the mean is right, times
  :math:`1 / (1 + \omega)`, with :math:`\omega = \min(\frac{d - 1}{4 s^2}, \frac{\sqrt d}{s})`
  and :math:`\alpha = 1 / (1 + \omega)`.

  Args:
    levels: s, a whole number from 1 to 127.
    random: whether it draws; another number for each entry and worker.

  Returns:
    A Compressor.

  Raises:
    ValueError: `levels` is no such number.

  Cost: a message of one byte an entry, and 4 bytes. Fewer levels need no fewer bytes here.

  Notes:
    The rounding at random is that of QSGD, with the largest magnitude in place of the norm,
    as in its experiments. The factor, which makes it a contraction, is the receiver's.

  References:
    Baseline: Alistarh, Grubic, Li, Tomioka, Vojnovic, "QSGD: Communication-Efficient SGD via
      Gradient Quantization and Encoding", 2016, arXiv:1610.02132

  Example:
    >>> import jax.numpy as jnp
    >>> compressor = uniform_rounding(2)
    >>> message = compressor.compress(jnp.array([1.0, -4.0, 0.5, 3.2]))
    >>> print(message.multiples, compressor.add(jnp.zeros(4), message, 1.0))
    [ 0 -2  0  2] [ 0. -4.  0.  4.]
  """
  check.whole("levels", levels, 1)
  check.between("levels", levels, 1, 127)

  def compress(x, key: Any = None):
    flat = x.reshape(-1)
    largest = jnp.max(jnp.abs(flat), initial=0)
    relative = flat / jnp.where(largest == 0, 1, largest) * levels
    if random:
      rounded = jnp.floor(relative + jax.random.uniform(key, flat.shape, jnp.float32))
    else:
      rounded = jnp.round(relative)
    whole = jnp.clip(rounded, -levels, levels).astype(jnp.int8)
    return UniformMessage(largest / levels, whole)

  def add(total, message, scale):
    factor = scale * message.step * (alpha(total.size) if random else 1.0)
    return total + (factor * message.multiples.reshape(total.shape)).astype(total.dtype)

  def alpha(size):
    omega = max(size - 1, 0) / (4 * levels**2)
    return 1 / (1 + (min(omega, math.sqrt(size) / levels) if random else omega))

  return Compressor(compress, add, alpha, "own" if random else "no")
