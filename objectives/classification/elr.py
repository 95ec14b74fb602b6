"""Early-learning regularisation: hold on to what the model believed before it memorised."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxrl import check, oracle, reduce
from jaxrl.oracle import Objective

from .cross_entropy import cross_entropy


class ElrState(NamedTuple):
  """State of `elr`: the running prediction for each example of the data set, `[N, C]`."""

  memory: jax.Array


def elr(
  num_examples: int,
  num_classes: int,
  *,
  beta: float = 0.7,
  lam: float = 3.0,
  clip: float = 1e-4,
) -> Objective:
  r"""Cross-entropy plus a pull towards a running average of the model's own predictions.

  With :math:`p_i` the softmax of the logits, clipped to :math:`[\epsilon, 1 - \epsilon]`,
  and :math:`\hat p_i` the same normalised again,

  .. math::
    t_i \leftarrow \beta t_i + (1 - \beta) \hat p_i, \qquad
    \ell_i = \mathrm{CE}(z_i, y_i) + \lambda \log(1 - \langle t_i, p_i \rangle).

  The memory t starts at 0, is updated before use, and is a constant for the gradient.

  Args:
    num_examples: N, the size of the data set.
    num_classes: C, the number of classes.
    beta: momentum of the memory, in [0, 1].
    lam: strength :math:`\lambda`, at least 0.
    clip: :math:`\epsilon`, above 0 and below 1/2.

  Returns:
    An Objective of `inputs`, `labels [B]` (or probabilities `[B, C]`) and `index [B]`, each
    example's number in the data set. One value for each example, `[B]`.

  Raises:
    ValueError: an argument is out of range, or the batch has no `index`.
    AssertionError: the logits are not `[B, C]`, or an array does not fit them.

  Cost: O(B C), and `4 * N * C` bytes of state, a copy of which is made unless it is donated.

  Notes:
    Examples with mask 0 leave the memory alone. Several copies of an example in one batch
    move its row once, to the (weighted) mean of their predictions; the official code keeps
    whichever is written last. Micro-batches give the whole batch's result as long as no
    example stands in two of them. An index outside the data set gives NaN. Defaults are
    those for CIFAR-10 with symmetric noise; asymmetric: `beta=0.9, lam=1`; CIFAR-100:
    `beta=0.9, lam=7`.

  References:
    [57] Liu, Niles-Weed, Razavian, Fernandez-Granda, "Early-Learning Regularization Prevents
      Memorization of Noisy Labels", 2020, arXiv:2007.00151

  Example:
    >>> import jax, jax.numpy as jnp
    >>> objective = elr(num_examples=9, num_classes=2, beta=0.75)
    >>> batch = {"inputs": jnp.zeros((1, 2)), "labels": jnp.array([0]), "index": jnp.array([4])}
    >>> state = objective.init(jax.random.key(0))
    >>> _, state, _ = objective.apply(state, lambda x: x, batch, jax.random.key(0))
    >>> print(state.memory[4])  # a quarter of the way from 0 to 1/2
    [0.125 0.125]
  """
  check.whole("num_examples", num_examples, 1)
  check.whole("num_classes", num_classes, 1)
  check.between("beta", beta, 0, 1)
  check.at_least("lam", lam, 0)
  check.above("clip", clip, 0)
  check.below("clip", clip, 0, 0.5)

  def init(key):
    del key
    return ElrState(jnp.zeros((num_examples, num_classes), jnp.float32))

  def apply(state, forward, batch, key):
    del key
    logits = oracle.named_outputs(forward(batch["inputs"]))["logits"]
    index = check.array("elr", "index", batch.get("index"))
    chex.assert_shape(logits, (None, num_classes))
    chex.assert_shape(index, logits.shape[:1])
    wide = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    probabilities = jnp.clip(jax.nn.softmax(wide), clip, 1 - clip)
    memory = _moved(state.memory, index, probabilities, batch.get("mask"), 1 - beta)
    own = memory.at[index].get(mode="fill", fill_value=jnp.nan)
    agreement = jnp.sum(own * probabilities, axis=-1)
    values = cross_entropy(logits, batch["labels"]) + lam * jnp.log1p(-agreement)
    return (oracle.masked_losses(values, batch.get("mask")),), ElrState(memory), {}

  return Objective(init, apply)


def _moved(
  memory: jax.Array,
  index: jax.Array,
  probabilities: jax.Array,
  mask: jax.Array | None,
  rate: float,
) -> jax.Array:
  """The memory, its rows at `index` moved by `rate` towards the predictions; a constant."""
  weights = jnp.ones(index.shape) if mask is None else mask
  index, probabilities, weights = map(reduce.all_rows, (index, probabilities, weights))
  beliefs = probabilities / jnp.sum(probabilities, axis=-1, keepdims=True)
  copies = jax.ops.segment_sum(weights, index, num_segments=len(memory))
  share = reduce.ratio(weights, copies[index])[:, None]
  step = rate * share * (beliefs - memory[index])
  step = jnp.where(share > 0, step, 0).astype(memory.dtype)
  return jax.lax.stop_gradient(memory.at[index].add(step))
