"""QK reparameterisation: quantise the product of query and key weights as one matrix."""

import chex
import jax
import jax.numpy as jnp

from jaxrl import check

from ._quantization import by_statistics


def qk_reparam(query: jax.Array, key: jax.Array, bits: int = 2) -> jax.Array:
  r"""The matrices by which attention compares tokens, rounded after multiplying.

  For each head h, with :math:`n = 2^{b-1}` and the statistics of each row c,

  .. math::
    M_h = W^Q_h (W^K_h)^\top, \qquad s_{hc} = 2 \, \mathrm{mean}_e |M_{hce}|, \qquad
    \hat M_{hce} = s_{hc} \, (k_{hce} + \tfrac12) / n,

  with the levels k and the straight-through derivative of `statsq`. Logits are
  :math:`x \hat M_h x^\top / \sqrt{D}`. Query and key weights, rounded apart, let each other's
  weights oscillate; so only their product is rounded.
  `jaxrl.models.QkAttention` is the Flax layer of it.

  Args:
    query: :math:`W^Q`, `[C, H, D]`, of width C, with H heads of size D.
    key: :math:`W^K`, `[C, H, D]`.
    bits: b, at least 1.

  Returns:
    :math:`\hat M`, `[H, C, C]`.

  Raises:
    ValueError: `bits` is no whole number of at least 1.
    AssertionError: the weights are not of rank 3, or differ in shape.

  Cost: `4 * H * C * C` bytes, and a product of as many times D multiplications.

  Notes:
    As in the official code, which has no biases in queries and keys, and quantises `x` and
    :math:`\hat M_h x^\top` too. Its variant for fine-tuning by `cga` has the same values and
    derivatives as this: query and key weights are not frozen.

  References:
    [106] Liu, Liu, Cheng, "Oscillation-free Quantization for Low-bit Vision Transformers", 2023,
      arXiv:2302.02210

  Example:
    >>> import jax.numpy as jnp
    >>> query = jnp.array([[[1.0]], [[2.0]]])
    >>> key = jnp.array([[[1.0]], [[-3.0]]])
    >>> print(qk_reparam(query, key, bits=2))  # of [[1, -3], [2, -6]]
    [[[ 1. -3.]
      [ 2. -6.]]]
  """
  chex.assert_rank([query, key], 3)
  chex.assert_equal_shape([query, key])
  check.whole("bits", bits, 1)
  product = jnp.einsum("chd,ehd->hce", query, key, precision="highest")
  return by_statistics(product, bits, (2,))
