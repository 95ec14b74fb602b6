"""Group DRO: minimise the loss of the worst group."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from jaxrl import check, reduce
from jaxrl.oracle import LossTransform


class GroupDroState(NamedTuple):
  """State of `group_dro`: the logarithms of the groups' weights, `[m]`."""

  count: jax.typing.ArrayLike
  log_q: jax.Array
  metrics: dict[str, jax.Array]


def group_dro(
  num_groups: int,
  *,
  eta: float | optax.Schedule = 0.01,
  adjustment: float = 0.0,
  group_counts: Sequence[int] | None = None,
  normalize: bool = False,
) -> LossTransform:
  r"""Weights the groups by exponentiated gradient ascent on their losses.

  With :math:`L_g` the mean loss of group g in the batch, 0 for a group without examples,
  :math:`n_g` its size in the training set, and :math:`q_g = 1/m` at first,

  .. math::
    A_g = L_g + C / \sqrt{n_g}, \qquad
    q_g \leftarrow \frac{q_g e^{\eta A_g}}{\sum_h q_h e^{\eta A_h}}, \qquad
    \mathrm{loss} = \sum_g q_g L_g,

  the weights updated before use and constant for the gradient.

  Args:
    num_groups: m, the number of groups.
    eta: step size :math:`\eta` of the weights, at least 0, or a schedule of the count of
      updates. 0 averages the groups; a huge one picks the worst.
    adjustment: C, at least 0; above 0 it needs `group_counts`. The paper tunes it in 0 to 5.
    group_counts: :math:`n_g`, m positive numbers.
    normalize: divide A by its sum over the groups.

  Returns:
    A loss transform whose `update` needs `group [B]`, integers in `[0, m)`. It leaves
    weights that add up to :math:`q_g` in each group, and a norm that adds up to 1 over the
    batch. The state's metrics hold each `q_g`.

  Raises:
    ValueError: an argument is out of range, or `update` was called without `group`.
    AssertionError: `group` is not `[B]`.

  Cost: O(B + m); `8 * m + 4` bytes of state.

  Notes:
    This is the online algorithm, not the greedy one. It keeps :math:`\log q`, so no loss
    is too large for it, and a weight recovers however small it was; where the official
    code's float32 does not underflow, q is the same. That code also adds
    :math:`C / \sqrt{n_g}` to the loss that it reports, which leaves the gradient alone.
    Examples with weight 0 don't count. A group outside `[0, m)` gives NaN. Values `[B, T]`
    belong to their example's group. The paper's runs balance the groups by sampling and
    need strong weight decay or early stopping.

  References:
    [331] Sagawa, Koh, Hashimoto, Liang, "Distributionally Robust Neural Networks for Group
      Shifts: On the Importance of Regularization for Worst-Case Generalization", 2019,
      arXiv:1911.08731

  Example:
    >>> import jax.numpy as jnp
    >>> from jaxrl.oracle import Losses, total
    >>> losses = Losses(jnp.array([1.0, 1.0, 4.0]), jnp.ones(3), jnp.ones(3))
    >>> transform = group_dro(num_groups=2, eta=0.0)
    >>> losses, _ = transform.update(
    ...   losses, transform.init(losses), group=jnp.array([0, 0, 1]))
    >>> print(f"{total([losses]):.4f}")  # (1 + 4) / 2, not (1 + 1 + 4) / 3
    2.5000
  """
  check.whole("num_groups", num_groups, 1)
  check.at_least("eta", eta, 0)
  margin = _margin(num_groups, adjustment, group_counts)

  def init_fn(params):
    del params
    uniform = jnp.full(num_groups, -math.log(num_groups), jnp.float32)
    return _state(jnp.zeros([], jnp.int32), uniform)

  def update_fn(updates, state, params=None, *, group=None, **extra_args):
    del params, extra_args
    group = _spread(check.array("group_dro", "group", group), updates.values.shape)
    means, sizes = _group_means(updates.values, updates.weights, group, num_groups)
    adjusted = means + margin
    if normalize:
      adjusted = reduce.ratio(adjusted, jnp.sum(adjusted))
    rate = eta(state.count) if callable(eta) else eta
    log_q = _ascended(state.log_q, rate, adjusted)
    share = reduce.ratio(jnp.exp(log_q), sizes).at[group].get(mode="fill", fill_value=jnp.nan)
    norm = reduce.ratio(updates.weights, reduce.batch_sum(updates.weights))
    losses = updates._replace(weights=updates.weights * share, norm=norm)
    return losses, _state(optax.safe_increment(state.count), log_q)

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _margin(
  num_groups: int, adjustment: float, group_counts: Sequence[int] | None
) -> jax.typing.ArrayLike:
  """The generalisation adjustment C / sqrt(n_g) of each group."""
  check.at_least("adjustment", adjustment, 0)
  if group_counts is None:
    if isinstance(adjustment, int | float) and adjustment > 0:
      raise ValueError(f"adjustment={adjustment} needs group_counts, the sizes of the groups")
    return 0.0
  if len(group_counts) != num_groups or min(group_counts) <= 0:
    raise ValueError(
      f"group_counts must be {num_groups} positive numbers, one a group, got {group_counts!r}"
    )
  return adjustment / jnp.sqrt(jnp.asarray(group_counts, jnp.float32))


def _state(count: jax.typing.ArrayLike, log_q: jax.Array) -> GroupDroState:
  q = jnp.exp(log_q)
  metrics = {f"q_{g}": q[g] for g in range(q.size)}
  return GroupDroState(count, log_q, metrics)


def _spread(group: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  """The group of each value: `[B]`, repeated along the other axes."""
  chex.assert_shape(group, shape[:1])
  return jnp.broadcast_to(jnp.expand_dims(group, range(1, len(shape))), shape)


def _group_means(
  values: jax.Array, weights: jax.Array, group: jax.Array, num_groups: int
) -> tuple[jax.Array, jax.Array]:
  """The weighted mean of each group, 0 without examples, and its sum of weights."""
  dtype = jnp.promote_types(values.dtype, jnp.float32)
  weights = weights.astype(dtype)
  weighted = weights * jnp.where(weights == 0, 0, jax.lax.stop_gradient(values))
  group = group.reshape(-1)
  sizes = reduce.group_sums(weights.reshape(-1), group, num_groups)
  return reduce.ratio(reduce.group_sums(weighted.reshape(-1), group, num_groups), sizes), sizes


def _ascended(
  log_q: jax.Array, rate: jax.typing.ArrayLike, gradient: jax.typing.ArrayLike
) -> jax.Array:
  """log of q e^(rate * gradient), normalised; only the differences of the gradient count."""
  lowest = jnp.finfo(log_q.dtype).min / 4
  step = jnp.maximum(rate * (gradient - jnp.max(gradient)), lowest)
  return jax.nn.log_softmax(log_q + step.astype(log_q.dtype))
