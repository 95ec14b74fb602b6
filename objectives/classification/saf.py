"""Sharpness-aware training for free: agree with the model of some time ago, saf and mesa."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxrl import check, oracle, reduce
from jaxrl.oracle import Objective

from .cross_entropy import cross_entropy


class SafState(NamedTuple):
  """State of `saf`: each example's latest logits, `[N, lag + 1, C]`, and how often it was seen."""

  memory: jax.Array
  visits: jax.Array


def saf(
  num_examples: int,
  num_classes: int,
  *,
  lam: float = 0.3,
  temperature: float = 5.0,
  lag: int = 3,
  start_epoch: int = 5,
  end_epoch: int | None = None,
) -> Objective:
  r"""Cross-entropy plus the divergence from the model's own outputs of a few epochs ago.

  With the logits :math:`z_i` of example i, those :math:`z_i^{-}` of :math:`\tilde E` epochs
  ago, and :math:`p_T(z) = \mathrm{softmax}(z / T)`,

  .. math::
    \ell_i = \mathrm{CE}(z_i, y_i) +
      \lambda T^2 \, \mathrm{KL}\left( p_T(z_i^{-}) \,\|\, p_T(z_i) \right)

  strictly between the first and the last epoch, and cross-entropy alone before and after.
  :math:`z_i^{-}` is a constant for the gradient. The divergence is large where the loss fell
  sharply along the trajectory, so that the term leads to flat minima, as SAM does, at the cost
  of one gradient.

  Args:
    num_examples: N, the size of the data set.
    num_classes: C, the number of classes.
    lam: strength :math:`\lambda`, at least 0.
    temperature: T, above 0.
    lag: :math:`\tilde E`, at least 1.
    start_epoch: the last epoch, counted from 0, without the divergence; at least `lag - 1`,
      so that there are outputs to look back to.
    end_epoch: the first epoch without it again; `None` for never.

  Returns:
    An Objective of `inputs`, `labels [B]` (or probabilities `[B, C]`) and `index [B]`, each
    example's number in the data set. One value for each example, `[B]`.

  Raises:
    ValueError: an argument is out of range, or the batch has no `index`.
    AssertionError: the logits are not `[B, C]`, or an array does not fit them.

  Cost: O(B C), and `4 * N * (C * (lag + 1) + 1)` bytes of state, a copy of which is made
    unless it is donated: 4.8 MB for CIFAR-10's 50000 images, 20 GB for ImageNet.

  Notes:
    An example's epochs are its visits, which is the same where every epoch shows each example
    once. The official code takes the epoch's number, and compares an example that an epoch
    left out (as the last incomplete batch) with what it then finds in the memory: older
    logits, or zeros. Its script has `lam=0.16` and ends at epoch 300, its page suggests 0.3
    or 0.8 and a lag of 2 or 3, and to begin at epoch 5 or after 30 % of all.
    Examples with mask 0 leave the memory alone. Several copies of an example in one batch
    are one visit, whose logits are their (weighted) mean. Micro-batches give the whole
    batch's result as long as no example stands in two of them. An index outside the data set
    gives NaN.

  References:
    [192] Du, Zhou, Feng, Tan, Zhou, "Sharpness-Aware Training for Free", 2022,
      arXiv:2205.14083

  Example:
    >>> import jax, jax.numpy as jnp
    >>> from jaxrl import oracle
    >>> objective = saf(9, 2, lam=1.0, temperature=1.0, lag=1, start_epoch=0)
    >>> state = objective.init(jax.random.key(0))
    >>> for logits in jnp.log(jnp.array([[[1.0, 1.0]], [[3.0, 1.0]]])):
    ...   batch = {"inputs": logits, "labels": jnp.array([0]), "index": jnp.array([4])}
    ...   terms, state, _ = objective.apply(state, lambda x: x, batch, jax.random.key(0))
    ...   print(f"{oracle.total(terms):.4f}")  # log 2; log(4 / 3) + log(2 / sqrt(3))
    0.6931
    0.4315
  """
  check.whole("num_examples", num_examples, 1)
  check.whole("num_classes", num_classes, 1)
  check.at_least("lam", lam, 0)
  check.above("temperature", temperature, 0)
  check.whole("lag", lag, 1)
  check.whole("start_epoch", start_epoch, lag - 1)
  if end_epoch is not None:
    check.whole("end_epoch", end_epoch, 0)

  def init(key):
    del key
    memory = jnp.zeros((num_examples, lag + 1, num_classes), jnp.float32)
    return SafState(memory, jnp.zeros((num_examples,), jnp.int32))

  def apply(state, forward, batch, key):
    del key
    logits = oracle.named_outputs(forward(batch["inputs"]))["logits"]
    index = check.array("saf", "index", batch.get("index"))
    chex.assert_shape(logits, (None, num_classes))
    chex.assert_shape(index, logits.shape[:1])
    epoch = state.visits[index]
    old = state.memory[index, (epoch - lag) % (lag + 1)]
    pull = jnp.where(
      _in_epochs(epoch, start_epoch, end_epoch), _divergence(old, logits, temperature), 0
    )
    values = cross_entropy(logits, batch["labels"]) + lam * pull
    values = jnp.where((index >= 0) & (index < num_examples), values, jnp.nan)
    state = jax.lax.stop_gradient(_remembered(state, index, logits, batch.get("mask")))
    return (oracle.masked_losses(values, batch.get("mask")),), state, {}

  return Objective(init, apply)


def mesa(
  *,
  lam: float = 0.3,
  temperature: float = 5.0,
  decay: float = 0.9998,
  start_epoch: int = 5,
  end_epoch: int | None = None,
) -> Objective:
  r"""Cross-entropy plus the divergence from an average of the model's weights over time.

  With the logits :math:`z_i` of the weights w and :math:`\bar z_i` of their average,

  .. math::
    \ell_i = \mathrm{CE}(z_i, y_i) +
      \lambda T^2 \, \mathrm{KL}\left( p_T(\bar z_i) \,\|\, p_T(z_i) \right), \qquad
    \bar w \leftarrow \beta \bar w + (1 - \beta) w

  after every step, strictly between the first and the last epoch, and cross-entropy alone
  before and after. It is `saf` with a copy of the weights in place of a memory of the data set.

  Args:
    lam: strength :math:`\lambda`, at least 0.
    temperature: T, above 0.
    decay: :math:`\beta`, in [0, 1].
    start_epoch: the last epoch, counted from 0, without the divergence.
    end_epoch: the first epoch without it again; `None` for never.

  Returns:
    An Objective of `inputs`, `labels [B]` (or probabilities `[B, C]`) and the number of the
    `epoch`, which the train step gives. The train step keeps the averages. One value for each
    example, `[B]`.

  Raises:
    ValueError: an argument is out of range, or the batch has no `epoch`.
    AssertionError: the logits are not `[B, C]`, or the labels do not fit them.

  Cost: one forward pass beyond the gradient's, and a copy of the weights.

  Notes:
    As in the official code the averages include the statistics of BatchNorm, and run as in
    evaluation. There the divergence ends at epoch 360.

  References:
    [192] Du, Zhou, Feng, Tan, Zhou, "Sharpness-Aware Training for Free", 2022,
      arXiv:2205.14083

  Example:
    >>> import jax, jax.numpy as jnp
    >>> from jaxrl import oracle
    >>> objective = mesa(lam=1.0, temperature=1.0, start_epoch=0)
    >>> def forward(inputs, teacher=False):  # a train step makes it
    ...   return jnp.log(jnp.array([[1.0, 1.0]])) if teacher else inputs
    >>> batch = {"inputs": jnp.log(jnp.array([[3.0, 1.0]])), "labels": jnp.array([0])}
    >>> batch["epoch"] = jnp.array(1)
    >>> terms, _, _ = objective.apply((), forward, batch, jax.random.key(0))
    >>> print(f"{oracle.total(terms):.4f}")  # log(4 / 3) + log(2 / sqrt(3))
    0.4315
  """
  check.at_least("lam", lam, 0)
  check.above("temperature", temperature, 0)
  check.between("decay", decay, 0, 1)
  check.whole("start_epoch", start_epoch, 0)
  if end_epoch is not None:
    check.whole("end_epoch", end_epoch, 0)

  def apply(state, forward, batch, key):
    del key
    epoch = check.array("mesa", "epoch", batch.get("epoch"))
    logits = oracle.named_outputs(forward(batch["inputs"]))["logits"]
    old = oracle.named_outputs(forward(batch["inputs"], teacher=True))["logits"]
    active = _in_epochs(epoch, start_epoch, end_epoch)
    pull = jnp.where(active, _divergence(old, logits, temperature), 0)
    values = cross_entropy(logits, batch["labels"]) + lam * pull
    return (oracle.masked_losses(values, batch.get("mask")),), state, {}

  return Objective(lambda key: (), apply, teacher=decay)


def _in_epochs(epoch: jax.Array, start: int, end: int | None) -> jax.Array:
  after = epoch > start
  return after if end is None else after & (epoch < end)


def _divergence(old: jax.Array, logits: jax.Array, temperature: float) -> jax.Array:
  """T^2 KL from the old predictions to the new ones, `[B]`, both softened by T."""
  wide = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
  target = jax.nn.log_softmax(jax.lax.stop_gradient(old).astype(wide.dtype) / temperature)
  log_p = jax.nn.log_softmax(wide / temperature)
  return temperature**2 * jnp.sum(jnp.exp(target) * (target - log_p), axis=-1)


def _remembered(
  state: SafState, index: jax.Array, logits: jax.Array, mask: jax.Array | None
) -> SafState:
  """The logits in the place of their examples' oldest ones, and one more visit for each."""
  size, slots, _ = state.memory.shape
  weights = jnp.ones(index.shape) if mask is None else mask
  index, logits, weights = map(reduce.all_rows, (index, logits, weights))
  row = jnp.where(weights > 0, index, size)  # what lies outside is dropped
  copies = jax.ops.segment_sum(weights, row, num_segments=size)
  share = reduce.ratio(weights, copies[index])[:, None]
  part = jnp.where(share > 0, share * logits, 0).astype(state.memory.dtype)
  visits = state.visits[index]
  memory = state.memory.at[row, visits % slots].set(0, mode="drop")
  memory = memory.at[row, visits % slots].add(part, mode="drop")
  return SafState(memory, state.visits.at[row].set(visits + 1, mode="drop"))
