"""Rand-k: send entries drawn at random, whose places cost nothing where workers share a key."""

import jax

from jaxrl import check

from ._compressor import Compressor
from ._sparse import SparseMessage, add_entries, entries_of, narrow


def rand_k(k: int | float, *, key: str = "own", unbiased: bool = False) -> Compressor:
  r"""Keeps k entries of each array, drawn without replacement in every step.

  .. math::
    C(x)_j = x_j \text{ for } j \in S, \text{ else } 0, \qquad
    \mathbb{E} \|C(x) - x\|^2 = (1 - k / d) \|x\|^2

  with :math:`d` the size of the array, one leaf of the parameters, and S a random set of k
  of its places.

  Args:
    k: a whole number of entries, at least 1, or a fraction of the array's size in (0, 1],
      rounded up to whole entries. An array with fewer entries is kept whole.
    key: "own" draws another set on each worker, and sends the indices; "shared" draws one
      set for all workers, who send no index and average their values with an all-reduce.
    unbiased: multiplies what is kept by d / k, so that :math:`\mathbb{E} \, C(x) = x`. It is
      then no contraction unless k > d / 2, and error feedback may diverge.

  Returns:
    A Compressor with :math:`\alpha = k / d`; 2 - d / k if `unbiased`, mostly negative.

  Raises:
    ValueError: `k` is neither, or `key` is unknown.

  Cost: one random permutation of the array; a message of k entries: 4 bytes each in float32,
    and with `key="own"` those of the indices (2 where the array has at most 65536 entries,
    else 4).

  References:
    Baseline: Stich, Cordonnier, Jaggi, "Sparsified SGD with Memory", 2018, arXiv:1809.07599

  Example:
    >>> import jax, jax.numpy as jnp
    >>> compressor = rand_k(2, key="shared")
    >>> x, key = jnp.array([1.0, -5.0, 0.5, 3.0]), jax.random.key(0)
    >>> message = compressor.compress(x, key)
    >>> sent = compressor.add(jnp.zeros(4), message, 1.0, key)
    >>> int(jnp.sum(sent == x)), int(jnp.sum(sent == 0))
    (2, 2)
    >>> compressor.alpha(4)
    0.5
  """
  check.one_of("key", key, ("own", "shared"))
  entries = entries_of(k)

  def places(drawn, size):
    return jax.random.permutation(drawn, size)[: entries(size)]

  def factor(size):
    return size / max(entries(size), 1) if unbiased else 1.0

  def compress(x, drawn):
    indices = places(drawn, x.size)
    values = (factor(x.size) * x.reshape(-1)[indices]).astype(x.dtype)
    return SparseMessage(values, narrow(indices, x.size))

  def add(total, message, scale):
    return add_entries(total, message.values, message.indices, scale)

  def values_alone(x, drawn):
    return (compress(x, drawn).values,)

  def add_values(total, message, scale, drawn):
    return add_entries(total, message[0], places(drawn, total.size), scale)

  def alpha(size):
    if not size:
      return 1.0
    return 2 - factor(size) if unbiased else entries(size) / size

  if key == "shared":
    return Compressor(values_alone, add_values, alpha, "shared")
  return Compressor(compress, add, alpha, "own")
