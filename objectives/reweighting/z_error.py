"""Z-error: leave out the examples of a batch that lie far from its mean."""

from collections.abc import Mapping
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from jaxrl import check, reduce
from jaxrl.oracle import LossTransform

_STATISTICS = ("auto", "error", "loss", "logit", "prob")


class ZErrorState(NamedTuple):
  """State of `z_error`: the count of updates, and the fraction of the batch that was kept."""

  count: jax.typing.ArrayLike
  metrics: dict[str, jax.Array]


class _Scores(NamedTuple):
  """What is standardised: `values [N, D]` within each of the `groups` by `group [N]`."""

  values: jax.Array
  group: jax.Array
  groups: int


def z_error(
  tau: float | optax.Schedule = 2.0, *, eps: float = 1e-8, statistic: str = "auto"
) -> LossTransform:
  r"""Drops examples whose score is more than :math:`\tau` standard deviations from the mean.

  For scores :math:`s_i` of a batch, with mean :math:`\mu` and standard deviation
  :math:`\sigma` (with :math:`B - 1` in the denominator),

  .. math::
    z_i = \frac{s_i - \mu}{\sigma + \epsilon}, \qquad m_i = 1[\, |z_i| \le \tau \,], \qquad
    \mathrm{loss} = \frac{\sum_i m_i \ell_i}{\sum_i m_i}.

  The scores are, by `statistic`,

  - `error`: the signed error `targets - predictions`;
  - `loss`: the loss :math:`\ell_i` itself;
  - `logit`, `prob`: the label's own logit or probability, :math:`\mu` and :math:`\sigma`
    taken over the examples of the same label;
  - `auto`: `error` where the batch has `targets`, else `logit`.

  Args:
    tau: threshold :math:`\tau`, above 0, or a schedule of the count of updates; infinity
      keeps everything.
    eps: :math:`\epsilon`, at least 0.
    statistic: what is standardised.

  Returns:
    A loss transform that multiplies weights and norm by m. `update` needs `predictions` and
    `targets`, `[B]` or `[B, ...]`, or `logits [B, C]` (`[B]` for two classes) and `labels`,
    or neither, as `statistic` says. The state's metrics hold the fraction kept.

  Raises:
    ValueError: an argument is out of range, or `update` lacks an array.
    AssertionError: logits and labels don't fit the losses.

  Cost: O(B); 8 bytes of state.

  Notes:
    The paper's formula takes the z-score of the loss, its code that of the signed error:
    the code is the default, `loss` the formula. For classification the paper treats two
    classes, by logits or probabilities within each; more classes are an extension, and so
    are several outputs (each standardised alone; all must be within :math:`\tau`). Labels
    that are probabilities count as their likeliest class. Statistics are weighted, and
    with a sum of weights below 2 everything is kept, so this stands before transforms
    that change weights. Since :math:`|z| \le (B - 1)/\sqrt{B}`, 2 never drops anything in
    batches of up to five. A score that is not a number is kept, to be seen.

  References:
    [169] Godin, "Z-Error Loss for Training Neural Networks", 2025, arXiv:2506.02154

  Example:
    >>> import jax.numpy as jnp
    >>> from jaxrl.oracle import Losses
    >>> values = jnp.array([0.0] * 9 + [90.0])
    >>> transform = z_error(tau=2.0, statistic="loss")
    >>> losses = Losses(values, jnp.ones(10), jnp.ones(10))
    >>> losses, _ = transform.update(losses, transform.init(losses))
    >>> print(losses.weights)  # 81 is more than 2 * sqrt(7290 / 9) = 57 from the mean
    [1. 1. 1. 1. 1. 1. 1. 1. 1. 0.]
  """
  check.above("tau", tau, 0)
  check.at_least("eps", eps, 0)
  check.one_of("statistic", statistic, _STATISTICS)

  def init_fn(params):
    del params
    return ZErrorState(jnp.zeros([], jnp.int32), {"kept": jnp.ones([], jnp.float32)})

  def update_fn(updates, state, params=None, **extras):
    del params
    threshold = tau(state.count) if callable(tau) else tau
    scores = _scores(statistic, updates.values, extras)
    z = _standardised(scores, updates.weights.reshape(-1, 1), eps)
    # A comparison that NaN passes: a broken batch must not look like an empty one.
    kept = ~jnp.any(jnp.abs(z) > threshold, axis=1).reshape(updates.weights.shape)
    fraction = reduce.weighted_mean(kept.astype(jnp.float32), updates.weights)
    losses = updates._replace(weights=updates.weights * kept, norm=updates.norm * kept)
    metrics = {"kept": fraction.astype(jnp.float32)}
    return losses, ZErrorState(optax.safe_increment(state.count), metrics)

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _scores(statistic: str, losses: jax.Array, extras: Mapping[str, jax.Array]) -> _Scores:
  one_group = jnp.zeros(losses.size, jnp.int32)
  if statistic == "auto":
    statistic = "error" if "targets" in extras else "logit"
  if statistic == "loss":
    return _Scores(losses.reshape(-1, 1), one_group, 1)
  if statistic == "error":
    predictions = check.array("z_error", "predictions", extras.get("predictions"))
    targets = check.array("z_error", "targets", extras.get("targets"))
    chex.assert_equal_shape([predictions, targets])
    return _Scores((targets - predictions).reshape(losses.size, -1), one_group, 1)
  logits = check.array("z_error", "logits", extras.get("logits"))
  labels = check.array("z_error", "labels", extras.get("labels"))
  return _label_scores(logits, labels, probabilities=statistic == "prob", losses=losses)


def _label_scores(
  logits: jax.Array, labels: jax.Array, *, probabilities: bool, losses: jax.Array
) -> _Scores:
  """The logit or probability of each example's label, grouped by label."""
  chex.assert_rank(losses, 1)
  chex.assert_equal_shape_prefix([logits, labels, losses], 1)
  if logits.ndim == 1:
    scores = jax.nn.sigmoid(logits) if probabilities else logits
    return _Scores(scores[:, None], labels.astype(jnp.int32), 2)
  chex.assert_rank(logits, 2)
  scores = jax.nn.softmax(logits) if probabilities else logits
  classes = jnp.argmax(labels, axis=-1) if labels.ndim == 2 else labels
  own = jnp.take_along_axis(scores, classes[:, None], axis=1)
  return _Scores(own, classes, logits.shape[1])


def _standardised(scores: _Scores, weights: jax.Array, eps: float) -> jax.Array:
  """z-scores `[N, D]` within each group; 0 in groups with a weight below two examples."""
  dtype = jnp.promote_types(scores.values.dtype, jnp.float32)
  weights = weights.astype(dtype)
  values = jnp.where(weights == 0, 0, jax.lax.stop_gradient(scores.values).astype(dtype))
  size = reduce.group_sums(weights, scores.group, scores.groups)
  mean = reduce.ratio(reduce.group_sums(weights * values, scores.group, scores.groups), size)
  deviation = values - mean[scores.group]
  squares = reduce.group_sums(weights * deviation**2, scores.group, scores.groups)
  spread = jnp.sqrt(squares / jnp.maximum(size - 1, 1))
  z = deviation / (spread + eps)[scores.group]
  return jnp.where(size[scores.group] < 2, 0, z)
