"""Mixup: convex combinations of pairs of examples and of their labels."""

import chex
import jax
import jax.numpy as jnp

from jaxrl import check
from jaxrl.oracle import BatchTransform

from ._mixing import draw_pairs, mix


def mixup(alpha: float = 0.2, *, num_classes: int) -> BatchTransform:
  r"""Replaces each example by a mixture with another one of the batch.

  With one :math:`\lambda \sim \mathrm{Beta}(\alpha, \alpha)` and one random permutation
  :math:`\pi` for the batch,

  .. math::
    x_i \leftarrow \lambda x_i + (1 - \lambda) x_{\pi(i)}, \qquad
    y_i \leftarrow \lambda y_i + (1 - \lambda) y_{\pi(i)}.

  Args:
    alpha: parameter of the Beta distribution, at least 0; 0 leaves the examples as they are.
    num_classes: C, the number of classes.

  Returns:
    A function `(key, batch) -> batch`. It mixes `inputs [B, ...]`, `targets [B, ...]` where
    there are some, and `labels`: classes `[B]` or probabilities `[B, C]` become
    probabilities `[B, C]`. The other arrays (`mask`, `index`, `group`) stay those of
    example i.

  Raises:
    ValueError: `alpha` is negative, or `num_classes` not a positive whole number.
    AssertionError: `labels` fit neither shape.

  Cost: one pass over the inputs, and a sort of B numbers.

  Notes:
    Examples with mask 0 (padding) are mixed only with one another, so that every counted
    example keeps its weight and none sees padding. Cross-entropy with the mixed labels is
    the paper's mixture of two cross-entropies. An example may be its own partner. Inputs
    of integers become floating point numbers.

  References:
    Baseline: Zhang, Cisse, Dauphin, Lopez-Paz, "mixup: Beyond Empirical Risk
      Minimization", 2017, arXiv:1710.09412

  Example:
    >>> import jax, jax.numpy as jnp
    >>> batch = {"inputs": jnp.array([[0.0], [1.0]]), "labels": jnp.array([0, 1])}
    >>> mixed = mixup(alpha=1.0, num_classes=2)(jax.random.key(0), batch)
    >>> bool(jnp.all(mixed["inputs"][:, 0] == mixed["labels"][:, 1]))
    True
  """
  check.at_least("alpha", alpha, 0)
  check.whole("num_classes", num_classes, 1)

  def transform(key, batch):
    batch = dict(batch)
    ratio, partner = draw_pairs(key, alpha, len(batch["inputs"]), batch.get("mask"))
    if "labels" in batch:
      batch["labels"] = _probabilities(batch["labels"], num_classes)
    mixed = {"inputs", "labels", "targets"} & set(batch)
    return batch | {name: mix(batch[name], ratio, partner) for name in mixed}

  return transform


def _probabilities(labels: jax.Array, num_classes: int) -> jax.Array:
  if jnp.issubdtype(labels.dtype, jnp.integer):
    chex.assert_rank(labels, 1)
    return jax.nn.one_hot(labels, num_classes)
  chex.assert_shape(labels, (None, num_classes))
  return labels
