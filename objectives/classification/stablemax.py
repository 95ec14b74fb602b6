"""StableMax cross-entropy: a softmax without the exponential, whose loss does not round to zero."""

import chex
import jax
import jax.numpy as jnp

from .cross_entropy import cross_entropy


def stablemax(logits: jax.Array, labels: jax.Array) -> jax.Array:
  r"""The negative log-likelihood of the labels under a StableMax.

  .. math::
    \ell_i = -\sum_c y_{ic} \log \frac{s(z_{ic})}{\sum_k s(z_{ik})}, \qquad
    s(x) = \begin{cases} x + 1 & x \ge 0 \\ 1 / (1 - x) & x < 0 \end{cases}

  In float32 a softmax with one logit far above the rest is exactly one-hot ("softmax
  collapse"): the loss and the gradient of such an example are exactly zero, and learning stops.
  s grows linearly, so that this takes logits ten million times as far.

  Args:
    logits: :math:`z`, `[B, C]`.
    labels: classes `[B]`, integers in `[0, C)`, or probabilities :math:`y`, `[B, C]`.

  Returns:
    Per-example values in nats, `[B]`, in float32 (or wider).

  Raises:
    AssertionError: `logits` is not of rank 2, or `labels` fit neither shape.

  Cost: one pass over the logits, with one logarithm more than a softmax. A class outside
    `[0, C)` gives NaN.

  Notes:
    It is the softmax cross-entropy of :math:`\log s(z)`. Adding a constant to all logits
    changes it, unlike a softmax. The official code computes it in float64.

  References:
    [45] Prieto, Barsbey, Mediano, Birdal, "Grokking at the Edge of Numerical Stability", 2025,
      arXiv:2501.04697

  Example:
    >>> import jax.numpy as jnp
    >>> value = stablemax(jnp.array([[2.0, -1.0, 0.5]]), jnp.array([0]))
    >>> print(f"{value[0]:.4f}")  # s is 3, 1/2 and 3/2: log(5 / 3)
    0.5108
  """
  chex.assert_rank(logits, 2)
  return cross_entropy(_log_s(logits), labels)


def log_stablemax(scores: jax.Array) -> jax.Array:
  r"""The logarithms of StableMax's probabilities, along the last axis.

  .. math::
    \log p_c = \log s(x_c) - \log \sum_k s(x_k), \qquad \log s(x) = \mathrm{sign}(x) \log(1 + |x|)

  Args:
    scores: x, `[..., C]`, such as logits of a model trained by `stablemax`.

  Returns:
    :math:`\log p`, `[..., C]`, in float32 (or wider).

  Cost: one pass over the scores.

  References:
    [45] Prieto, Barsbey, Mediano, Birdal, "Grokking at the Edge of Numerical Stability", 2025,
      arXiv:2501.04697

  Example:
    >>> import jax.numpy as jnp
    >>> log_p = log_stablemax(jnp.array([2.0, -1.0, 0.5]))
    >>> print(jnp.round(jnp.exp(log_p), 3))  # of 3, 1/2 and 3/2
    [0.6 0.1 0.3]
  """
  return jax.nn.log_softmax(_log_s(scores))


def _log_s(x: jax.Array) -> jax.Array:
  x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
  negative = x < 0
  # By parts, so that the derivative at 0 is 1.
  below, above = jnp.where(negative, x, 0), jnp.where(negative, 0, x)
  return jnp.where(negative, -jnp.log1p(-below), jnp.log1p(above))
