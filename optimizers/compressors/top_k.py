"""Top-k: send the entries of largest magnitude, each with its index."""

import jax
import jax.numpy as jnp

from jaxrl import check

from ._compressor import Compressor
from ._sparse import SparseMessage, add_entries, entries_of, narrow


def top_k(k: int | float, *, block: int | None = None) -> Compressor:
  r"""Keeps the k entries of largest magnitude of each array and drops the others.

  .. math::
    C(x)_j = x_j \text{ for the } k \text{ largest } |x_j|, \text{ else } 0, \qquad
    \|C(x) - x\|^2 \le (1 - k / d) \|x\|^2

  with :math:`d` the size of the array, one leaf of the parameters. For one k over the whole
  tree put the method that compresses into `optax.flatten`.

  Args:
    k: a whole number of entries, at least 1 (`top_k(1)` keeps one), or a fraction of the
      array's size in (0, 1], rounded up to whole entries (`top_k(1.0)` keeps all). An array
      with fewer entries is kept whole.
    block: takes the largest of every `block` entries in a row instead of the whole array,
      where :math:`d` and `k` are those of a block: narrower indices, and less to sort. A
      whole number of at least 1, or `None`.

  Returns:
    A Compressor with :math:`\alpha = k / d`.

  Raises:
    ValueError: `k` is neither, or `block` is no such number.

  Cost: one `jax.lax.top_k` over the array; a message of 8 bytes an entry in float32, half
    of them for the index; 6 bytes where the array, or the block, has at most 65536 entries.

  Notes:
    Of tied magnitudes the first ones are kept.
    `jax.lax.top_k` does not partition. The magnitudes of a leaf that is sharded over `fsdp`
    as well are therefore gathered along that axis, 4 bytes an entry, about as much as the
    step gathers of the leaf itself. What crosses between workers stays k entries.

  References:
    Baseline: Stich, Cordonnier, Jaggi, "Sparsified SGD with Memory", 2018, arXiv:1809.07599

  Example:
    >>> import jax.numpy as jnp
    >>> compressor = top_k(2)
    >>> message = compressor.compress(jnp.array([1.0, -5.0, 0.5, 3.0]))
    >>> print(message.values, message.indices)
    [-5.  3.] [1 3]
    >>> print(compressor.add(jnp.ones(4), message, 0.5))
    [ 1.  -1.5  1.   2.5]
    >>> compressor.alpha(4)
    0.5
  """
  entries = entries_of(k)
  if block is not None:
    check.whole("block", block, 1)

  def width(size):
    return size if block is None else min(block, size)

  def compress(x):
    if block is None:
      _, indices = jax.lax.top_k(jnp.abs(x.reshape(-1)), entries(x.size))
      return SparseMessage(x.reshape(-1)[indices], narrow(indices, x.size))
    columns = max(width(x.size), 1)
    rows = jnp.pad(x.reshape(-1), (0, -x.size % columns)).reshape(-1, columns)
    _, indices = jax.lax.top_k(jnp.abs(rows), entries(columns))
    return SparseMessage(jnp.take_along_axis(rows, indices, axis=1), narrow(indices, columns))

  def add(total, message, scale):
    indices = message.indices
    if block is not None:
      starts = width(total.size) * jnp.arange(len(indices), dtype=jnp.int32)
      indices = starts[:, None] + indices.astype(jnp.int32)  # past the end they are dropped
    return add_entries(total, message.values.reshape(-1), indices.reshape(-1), scale)

  def alpha(size):
    return entries(width(size)) / width(size) if size else 1.0

  return Compressor(compress, add, alpha)
