"""No compression: every array is sent as it is."""

from ._compressor import Compressor


def no_compression() -> Compressor:
  r"""Sends arrays whole, :math:`C(x) = x`: what others are compared with.

  Returns:
    A Compressor with :math:`\alpha = 1`.

  Cost: a message of 4 bytes an entry in float32.

  References:
    Baseline: Richtárik, Sokolov, Fatkhullin, "EF21: A New, Simpler, Theoretically Better, and
      Practically Faster Error Feedback", 2021, arXiv:2106.05203

  Example:
    >>> import jax.numpy as jnp
    >>> compressor = no_compression()
    >>> (message,) = compressor.compress(jnp.array([1.0, -5.0]))
    >>> print(message)
    [ 1. -5.]
  """

  def add(total, message, scale):
    return total + (scale * message[0]).astype(total.dtype)

  return Compressor(lambda x: (x,), add, lambda size: 1.0)
