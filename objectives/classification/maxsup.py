"""Max suppression: label smoothing that presses on the largest logit, not on the label's."""

import jax
import jax.numpy as jnp

from jaxrl import check

from .cross_entropy import cross_entropy


def maxsup(logits: jax.Array, labels: jax.Array, *, alpha: float = 0.1) -> jax.Array:
  r"""Cross-entropy plus the height of the largest logit above the mean of all.

  .. math::
    \ell_i = \mathrm{CE}(z_i, y_i)
      + \alpha \Big( \max_c z_{ic} - \tfrac{1}{C} \sum_c z_{ic} \Big)

  Label smoothing has the label's logit in place of the maximum. The two agree where the
  prediction is correct; where it is wrong, label smoothing raises the wrong logit's lead
  and this does not.

  Args:
    logits: :math:`z`, `[B, C]`.
    labels: classes `[B]`, integers in `[0, C)`, or probabilities `[B, C]`, as after mixup;
      only the cross-entropy sees them.
    alpha: strength :math:`\alpha`, at least 0.

  Returns:
    Per-example values, `[B]`.

  Raises:
    ValueError: `alpha` is negative.
    AssertionError: `logits` is not of rank 2, or `labels` fit neither shape.

  Cost: three passes over the logits.

  Notes:
    Where several logits are the largest, the first of them gets the gradient, as in the
    official code. The paper's runs let `alpha` grow linearly from 0.1 to 0.2 over the
    epochs; here it is constant.

  References:
    [173] Zhou, Li, Wang, Cheng, Sakaridis, Keuper, "MaxSup: Overcoming Representation
      Collapse in Label Smoothing", 2025, arXiv:2502.15798

  Example:
    >>> import jax.numpy as jnp
    >>> logits, labels = jnp.array([[2.0, 0.0]]), jnp.array([0])
    >>> added = maxsup(logits, labels, alpha=0.5) - cross_entropy(logits, labels)
    >>> print(f"{added[0]:.4f}")  # 0.5 * (2 - 1)
    0.5000
  """
  check.at_least("alpha", alpha, 0)
  fit = cross_entropy(logits, labels)
  # jnp.max would share the gradient among ties.
  largest = jnp.argmax(logits, axis=-1, keepdims=True)
  top = jnp.take_along_axis(logits, largest, axis=-1)[..., 0]
  return fit + alpha * (top - jnp.mean(logits, axis=-1))
