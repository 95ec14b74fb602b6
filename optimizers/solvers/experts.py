"""Prediction with expert advice, where experts may sleep: Hedge and AdaNormalHedge."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrl import check, reduce


class Experts(NamedTuple):
  """Functions that weigh n experts round by round; all are pure.

  Attributes:
    init: `init(n) -> state`.
    weights: `weights(state, awake) -> [n]`, which are 0 for those who sleep, `awake` being
      booleans `[n]`, and sum to one unless all do.
    update: `update(state, losses, awake) -> state`, with losses in [0, 1]; those of sleepers
      are not looked at.
  """

  init: Callable[[int], Any]
  weights: Callable[[Any, jax.Array], jax.Array]
  update: Callable[[Any, jax.Array, jax.Array], Any]


class ExpertsState(NamedTuple):
  """State of both: each expert's regret, and the sum of its absolute values round by round."""

  regret: jax.Array
  spent: jax.Array


def hedge(learning_rate: float) -> Experts:
  r"""Exponential weights on the regret to each expert in the rounds when it was awake.

  With the losses :math:`\ell_{t,i}` and the awake :math:`I_t`,

  .. math::
    p_{t,i} \propto 1[i \in I_t] e^{\eta R_{t-1,i}}, \qquad
    R_{t,i} = R_{t-1,i} + 1[i \in I_t] \Big( \sum_j p_{t,j} \ell_{t,j} - \ell_{t,i} \Big),

  which is plain Hedge, :math:`p_i \propto e^{-\eta \sum \ell_i}`, where nobody sleeps.

  Args:
    learning_rate: :math:`\eta`, at least 0: about :math:`\sqrt{8 \log(n) / T}` for n experts
      and T rounds.

  Returns:
    Experts.

  Raises:
    ValueError: `learning_rate` is negative.

  Cost: two numbers an expert.

  References:
    Baseline: Freund, Schapire, Singer, Warmuth, "Using and Combining Predictors that
      Specialize", 1997

  Example:
    >>> import jax.numpy as jnp
    >>> experts, everyone = hedge(float(jnp.log(3.0))), jnp.array([True, True])
    >>> state = experts.update(experts.init(2), jnp.array([0.0, 1.0]), everyone)
    >>> print(jnp.round(experts.weights(state, everyone), 4))
    [0.75 0.25]
  """
  check.at_least("learning_rate", learning_rate, 0)
  return _experts(lambda state: learning_rate * state.regret)


def ada_normal_hedge() -> Experts:
  r"""Weights by the growth of a potential of the regret: no learning rate, and sleepers fair.

  With :math:`r_{t,i} = 1[i \in I_t] (\sum_j p_{t,j} \ell_{t,j} - \ell_{t,i})`,
  :math:`R_i = \sum r_{t,i}` and :math:`C_i = \sum |r_{t,i}|`,

  .. math::
    p_i \propto 1[i \in I_t] \, w(R_i, C_i), \qquad
    w(R, C) = \tfrac12 \big( \Phi(R + 1, C + 1) - \Phi(R - 1, C + 1) \big), \qquad
    \Phi(R, C) = e^{\max(R, 0)^2 / 3C},

  equal among the awake where all w are 0.

  Returns:
    Experts.

  Cost: two numbers an expert.

  Notes:
    Weights are formed by their logarithms: the exponent grows up to C / 3, and overflows
    float32 after some 270 rounds. PyNOL has C - 1 in the second potential, the paper C + 1.

  References:
    Baseline: Luo, Schapire, "Achieving All with No Parameters: AdaNormalHedge", 2015,
      arXiv:1502.05934

  Example:
    >>> import jax.numpy as jnp
    >>> experts = ada_normal_hedge()
    >>> print(experts.weights(experts.init(3), jnp.array([True, False, True])))
    [0.5 0.  0.5]
  """

  def log_weight(state):
    high, low = (jnp.maximum(state.regret + side, 0) ** 2 for side in (1, -1))
    high, low = (square / (3 * (state.spent + 1)) for square in (high, low))
    return jnp.where(high > low, high + _log_minus(low - high), -jnp.inf)

  return _experts(log_weight)


def _log_minus(x: jax.Array) -> jax.Array:
  """log(1 - e^x) for x < 0, and anything finite elsewhere."""
  return jnp.log(-jnp.expm1(jnp.where(x < 0, x, -1)))


def _experts(log_weight: Callable[[ExpertsState], jax.Array]) -> Experts:
  def init(number):
    return ExpertsState(jnp.zeros(number), jnp.zeros(number))

  def weights(state, awake):
    logs = jnp.where(awake, log_weight(state), -jnp.inf)
    largest = jnp.max(logs)
    some = jnp.isfinite(largest)
    w = jnp.where(some, jnp.exp(logs - jnp.where(some, largest, 0)), awake)
    return reduce.ratio(w, jnp.sum(w))

  def update(state, losses, awake):
    losses = jnp.where(awake, losses, 0)
    r = jnp.where(awake, weights(state, awake) @ losses - losses, 0)
    return ExpertsState(state.regret + r, state.spent + jnp.abs(r))

  return Experts(init, weights, update)
