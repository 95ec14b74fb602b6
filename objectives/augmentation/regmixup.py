"""RegMixup: mixup as a regulariser beside the clean loss, not in its place."""

import chex
import jax.numpy as jnp

from jaxrl import check, oracle
from jaxrl.oracle import Objective

from ..classification.cross_entropy import cross_entropy
from ._mixing import draw_pairs, mix


def regmixup(alpha: float = 20.0, *, eta: float = 1.0, official: bool = True) -> Objective:
  r"""Cross-entropy on the batch plus cross-entropy on its mixup, in one forward pass.

  With logits z of the batch and z' of its mixup :math:`\lambda x_i + (1-\lambda) x_{\pi(i)}`,

  .. math::
    \ell_i = \mathrm{CE}(z_i, y_i) + \eta \left[ \lambda \mathrm{CE}(z'_i, y_i)
      + (1 - \lambda) \mathrm{CE}(z'_i, y_{\pi(i)}) \right],

  halved where `official`. :math:`\lambda \sim \mathrm{Beta}(\alpha, \alpha)` and the
  permutation :math:`\pi` are drawn once a batch. A large :math:`\alpha` keeps
  :math:`\lambda` near 1/2: mixtures lie between the classes, and only there the model
  learns to be uncertain.

  Args:
    alpha: parameter of the Beta distribution, at least 0. The paper has 20 for CIFAR-10 and
      10 for CIFAR-100.
    eta: weight of the mixed part, at least 0.
    official: half the paper's loss, as in the official code.

  Returns:
    An Objective of `inputs [B, ...]` and `labels [B]` (or probabilities `[B, C]`), whose
    model gives `logits [2B, C]` for the batch followed by its mixup. One value for each
    example, `[B]`, weighted by `mask`.

  Raises:
    ValueError: `alpha` or `eta` is negative.

  Cost: forward and backward passes over twice the batch.

  Notes:
    The paper adds two means over B examples; the official code takes one mean over the 2B,
    which is half of it at :math:`\eta = 1` and acts on the learning rate and its ratio to
    weight decay. Its runs gave the paper's numbers, so it is the default. Both parts go
    through the model together, so batch norm sees their joint statistics. Examples with
    mask 0 are mixed only with one another.

  References:
    [357] Pinto, Yang, Lim, Torr, Dokania, "RegMixup: Mixup as a Regularizer Can Surprisingly
      Improve Accuracy and Out Distribution Robustness", 2022, arXiv:2206.14502

  Example:
    >>> import jax, jax.numpy as jnp
    >>> from jaxrl import oracle
    >>> objective = regmixup(eta=0.0, official=False)
    >>> batch = {"inputs": jnp.zeros((3, 2)), "labels": jnp.array([0, 1, 1])}
    >>> terms, _, _ = objective.apply((), lambda x: x, batch, jax.random.key(0))
    >>> print(f"{oracle.total(terms):.4f}")  # log 2
    0.6931
  """
  check.at_least("alpha", alpha, 0)
  check.at_least("eta", eta, 0)
  scale = 0.5 if official else 1.0

  def apply(state, forward, batch, key):
    inputs, labels, mask = batch["inputs"], batch["labels"], batch.get("mask")
    ratio, partner = draw_pairs(key, alpha, len(inputs), mask)
    mixed = mix(inputs, ratio, partner)
    both = jnp.concatenate([inputs.astype(mixed.dtype), mixed])
    logits = oracle.named_outputs(forward(both))["logits"]
    chex.assert_axis_dimension(logits, 0, len(both))
    clean_logits, mixed_logits = jnp.split(logits, 2)
    own = cross_entropy(mixed_logits, labels)
    other = cross_entropy(mixed_logits, labels[partner])
    mixture = ratio * own + (1 - ratio) * other
    values = scale * (cross_entropy(clean_logits, labels) + eta * mixture)
    return (oracle.masked_losses(values, mask),), state, {}

  return Objective(lambda key: (), apply)
