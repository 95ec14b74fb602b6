"""The record that every compressor is, and how workers exchange what it makes."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from jaxrl import parallel


class Compressor(NamedTuple):
  r"""The functions that a distributed method needs of a compressor :math:`C`.

  A message is what one worker sends for one array: a tuple or dict of arrays, the fewer
  bytes the better. Its shapes depend on the array's shape alone.

  Attributes:
    compress: `compress(x) -> message`.
    add: `add(total, message, scale)` is :math:`t + s \, C(x)`, in the shape and dtype of
      `total`. It costs no more than the message where the message is sparse.
    alpha: `alpha(size)` is the largest proven :math:`\alpha` of the contraction
      :math:`\mathbb{E} \|C(x) - x\|^2 \le (1 - \alpha) \|x\|^2` for `size` entries.
  """

  compress: Callable[[jax.Array], Any]
  add: Callable[[jax.Array, Any, jax.typing.ArrayLike], jax.Array]
  alpha: Callable[[int], float]


def add_mean(
  compressor: Compressor, total: jax.Array, message: Any, axis_name: parallel.AxisName | None
) -> jax.Array:
  """`total` plus the mean of what the messages of all workers stand for.

  The messages are all that crosses between workers. They are added one after the other, in
  the order of the workers, so that every device rounds alike: shared state stays equal.
  """
  if axis_name is None:
    return compressor.add(total, message, 1.0)
  share = 1 / parallel.size(axis_name)

  def add(total, message):
    return compressor.add(total, message, share), None

  messages = jax.tree.map(lambda x: parallel.gather(x, axis_name), message)
  return jax.lax.scan(add, total, messages)[0]


def message_bytes(message: Any) -> int:
  """The size of what a worker sends."""
  return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(message))
