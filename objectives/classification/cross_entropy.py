"""Softmax cross-entropy."""

import chex
import jax
import jax.numpy as jnp
import optax


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
  r"""The negative log-likelihood of the labels under a softmax.

  .. math::
    \ell_i = -\sum_c y_{ic} \log \mathrm{softmax}(z_i)_c

  Args:
    logits: :math:`z`, `[B, C]`, or of tokens, `[B, T, C]`.
    labels: classes `[B]` or `[B, T]`, integers in `[0, C)`, or probabilities :math:`y` of the
      shape of the logits, as after mixup.

  Returns:
    Per-example values in nats, `[B]`, or of each token, `[B, T]`.

  Raises:
    AssertionError: `logits` is not of rank 2 or 3, or `labels` fit neither shape.

  Cost: one pass over the logits. A class outside `[0, C)` gives NaN.

  References:
    Baseline; values from `optax.softmax_cross_entropy`.

  Example:
    >>> import jax.numpy as jnp
    >>> logits = jnp.log(jnp.array([[0.25, 0.75]]))
    >>> print(f"{cross_entropy(logits, jnp.array([0]))[0]:.4f}")
    1.3863
  """
  chex.assert_rank(logits, {2, 3})
  if jnp.issubdtype(labels.dtype, jnp.integer):
    chex.assert_shape(labels, logits.shape[:-1])
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)
  chex.assert_equal_shape([logits, labels])
  return optax.softmax_cross_entropy(logits, labels)
