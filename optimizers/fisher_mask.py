"""Fisher SAM: perturb the parameters with the largest diagonal Fisher information."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxrl import check, reduce

from ._largest import largest
from ._sharpness import Mask, path_of


class FisherMaskState(NamedTuple):
  """State of `fisher_mask`: the count of steps, and which entries are perturbed."""

  count: jax.typing.ArrayLike
  chosen: Any


def fisher_mask(
  keep: float = 0.1, *, every: int = 100, exclude: str = "bias|[Ee]mbed|BatchNorm"
) -> Mask:
  r"""Chooses the entries with the largest squared gradients, for `sam(mask=...)`.

  Every so many steps, the first one included, with the gradient :math:`g` of that step's
  batch and N entries that are not excluded,

  .. math::
    F = g^2, \qquad m_j = 1 \text{ for the } \lfloor k N \rfloor \text{ largest } F_j,
    \text{ else } 0.

  Excluded parameters are always perturbed, :math:`m_j = 1`. In every step

  .. math::
    e = \rho \, m \odot g / (\|g\|_2 + \epsilon), \qquad u = \nabla L(w + e),

  by the norm of the whole gradient, so that :math:`\|e\|_2 \le \rho`.

  Args:
    keep: fraction :math:`k` of the entries to perturb, in [0, 1].
    every: steps after which the entries are chosen anew.
    exclude: a regular expression, found anywhere in the path of a parameter
      (`Embed_0/embedding`) that is always perturbed.

  Returns:
    A Mask.

  Raises:
    ValueError: `keep` is outside [0, 1], `every` is no positive whole number, or `exclude` no
      regular expression.

  Cost: 1 byte a parameter. Choosing reads the gradient 32 times, in place of a sort, so that
  sharded parameters stay where they are; workers with gradients of their own send one more
  of them then.

  Notes:
    The Fisher information is the empirical one, of the mean gradient. Of equal entries the
    first ones are chosen. Counts have 32 bits, which is for two thousand million entries.
    The official code adds 1e-7 to the norm, `sam(eps=1e-7, mask=fisher_mask())`, and chooses
    anew every 100 updates in its README, every one by default. It sets the gradient to zero
    once it has chosen, so that its perturbation of such a step is zero; here it isn't. It
    excludes BatchNorm, embeddings and biases, but no LayerNorm.

  References:
    [217] Zhong, Ding, Shen, Mi, Liu, Du, Tao, "Improving Sharpness-Aware Minimization with
      Fisher Mask for Better Generalization on Language Models", 2022, arXiv:2210.05497

  Example:
    >>> import jax.numpy as jnp
    >>> mask = fisher_mask(keep=0.5)
    >>> params = {"kernel": jnp.zeros(4), "bias": jnp.zeros(1)}
    >>> gradient = {"kernel": jnp.array([1.0, -3.0, 0.0, 2.0]), "bias": jnp.zeros(1)}
    >>> chosen, state = mask.update(gradient, mask.init(params), params)
    >>> print(chosen["kernel"], chosen["bias"])
    [False  True False  True] [ True]
  """
  check.between("keep", keep, 0, 1)
  check.whole("every", every, 1)
  pattern = check.regex("exclude", exclude)

  def init(params):
    return FisherMaskState(
      count=jnp.zeros([], jnp.int32),
      chosen=jax.tree.map(lambda w: jnp.ones(jnp.shape(w), bool), params),
    )

  def update(gradient, state, params):
    del params

    def choose():
      paths, leaves, structure = _flat(gradient)
      ranked = [i for i, path in enumerate(paths) if not pattern.search(path)]
      chosen = [jnp.ones(leaf.shape, bool) for leaf in leaves]
      wanted = int(keep * sum(leaves[i].size for i in ranked))
      for i, kept in zip(ranked, largest([leaves[i] for i in ranked], wanted), strict=True):
        chosen[i] = kept
      return jax.tree.unflatten(structure, chosen)

    chosen = jax.lax.cond(state.count % every == 0, choose, lambda: state.chosen)
    return chosen, FisherMaskState(optax.safe_increment(state.count), chosen)

  return Mask(init, update, whole_norm=True)


def _flat(gradient: Any) -> tuple[list[str], list[jax.Array], Any]:
  """Paths and magnitudes of the batch's gradient, averaged over workers with their own."""
  flat, structure = jax.tree.flatten_with_path(gradient)
  share = 1 / reduce.workers()
  leaves = [jnp.abs(share * reduce.all_workers(leaf.astype(jnp.float32))) for _, leaf in flat]
  return [path_of(path) for path, _ in flat], leaves, structure
