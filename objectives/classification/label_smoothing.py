"""Label smoothing: cross-entropy with part of the target spread over all classes."""

import jax
import jax.numpy as jnp
import optax

from jaxrl import check

from .cross_entropy import cross_entropy


def label_smoothing(logits: jax.Array, labels: jax.Array, *, alpha: float = 0.1) -> jax.Array:
  r"""Cross-entropy to targets that are mixed with the uniform distribution.

  .. math::
    \ell_i = \mathrm{CE}(z_i, (1 - \alpha)\, y_i + \alpha / C)
      = \mathrm{CE}(z_i, y_i) + \alpha \Big( z_{i y_i} - \tfrac{1}{C} \sum_c z_{ic} \Big)

  Args:
    logits: :math:`z`, `[B, C]`.
    labels: classes `[B]`, integers in `[0, C)`, or probabilities :math:`y`, `[B, C]`.
    alpha: share :math:`\alpha` of the uniform distribution, in [0, 1].

  Returns:
    Per-example values in nats, `[B]`.

  Raises:
    ValueError: `alpha` is outside [0, 1].
    AssertionError: `logits` is not of rank 2, or `labels` fit neither shape.

  Cost: one pass over the logits.

  References:
    Baseline: Szegedy, Vanhoucke, Ioffe, Shlens, Wojna, "Rethinking the Inception Architecture
      for Computer Vision", 2015, arXiv:1512.00567

  Example:
    >>> import jax.numpy as jnp
    >>> logits = jnp.array([[3.0, 0.0]])
    >>> added = label_smoothing(logits, jnp.array([0])) - cross_entropy(logits, jnp.array([0]))
    >>> print(f"{added[0]:.3f}")  # 0.1 * (3 - 1.5)
    0.150
  """
  check.between("alpha", alpha, 0, 1)
  if jnp.issubdtype(labels.dtype, jnp.integer):
    labels = jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
  return cross_entropy(logits, optax.smooth_labels(labels, alpha))
