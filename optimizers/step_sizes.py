"""Step sizes of online learners that depend on how well the gradients were predicted."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxrl import check, reduce


class StepSize(NamedTuple):
  r"""Step sizes :math:`\eta_t` from the errors :math:`\epsilon_s = \|g_s - m_s\|_*`, :math:`s < t`.

  Attributes:
    init: `init() -> state`.
    rate: `rate(state) -> eta`, a scalar.
    update: `update(state, error) -> state`, after each round.
  """

  init: Callable[[], Any]
  rate: Callable[[Any], jax.Array]
  update: Callable[[Any, jax.Array], Any]


def sea_convex(diameter: float, bound: float, delta: float = 1.0) -> StepSize:
  r"""For convex expected losses: steps shrink with the errors of the hints, not with time.

  .. math::
    \eta_t = \frac{D}{\sqrt{\delta + 4 G^2 + \sum_{s < t} \|g_s - m_s\|_*^2}}

  Args:
    diameter: :math:`D` of the domain, above 0.
    bound: :math:`G`, at least 0, of the norms of the (random) gradients.
    delta: :math:`\delta`, above 0. With L-smooth expected losses the theory takes
      :math:`10 D^2 L^2`.

  Raises:
    ValueError: an argument is out of range.

  References:
    [11] Chen, Zhang, Tu, Zhao, Zhang, "Optimistic Online Mirror Descent for Bridging
      Stochastic and Adversarial Online Convex Optimization", 2024, arXiv:2302.04552

  Example:
    >>> steps = sea_convex(diameter=2.0, bound=0.0, delta=1.0)
    >>> print(f"{steps.rate(steps.update(steps.init(), 3.0**0.5)):.4f}")  # 2 / sqrt(1 + 3)
    1.0000
  """
  check.above("diameter", diameter, 0)
  check.at_least("bound", bound, 0)
  check.above("delta", delta, 0)

  def rate(size):  # the root of the sum: squares of huge errors would overflow
    return diameter / jnp.hypot((delta + 4 * bound**2) ** 0.5, size)

  return StepSize(lambda: jnp.zeros(()), rate, jnp.hypot)


def sea_adahedge(diameter: float) -> StepSize:
  r"""For convex expected losses where no bound of the gradients is known.

  .. math::
    \eta_t = \frac{D^2}{\sum_{s < t} \min\{\tfrac{\eta_s}{2} \|g_s - m_s\|_*^2, \;
      D \|g_s - m_s\|_*\}}

  Args:
    diameter: :math:`D` of the domain, above 0.

  Raises:
    ValueError: `diameter` is not above 0.

  Notes:
    The first step, and every one before the first error, is infinite in the formula; here it
    is 0: the start is kept until there is something to learn from.

  References:
    Baseline: Sachs, Hadiji, van Erven, Guzmán, "Between Stochastic and Adversarial Online
      Convex Optimization: Improved Regret Bounds via Smoothness", 2022, arXiv:2202.07554

  Example:
    >>> steps = sea_adahedge(diameter=2.0)
    >>> after_one = steps.update(steps.init(), 1.0)  # min(infinite, 2 * 1)
    >>> print(f"{steps.rate(after_one):.4f} {steps.rate(steps.update(after_one, 1.0)):.4f}")
    2.0000 1.3333
  """
  check.above("diameter", diameter, 0)

  def rate(total):
    return reduce.ratio(diameter**2, total)

  def update(total, error):
    by_step = jnp.where(total > 0, rate(total) / 2 * error, jnp.inf)
    return total + error * jnp.minimum(by_step, diameter)

  return StepSize(lambda: jnp.zeros(()), rate, update)


def sea_strongly_convex(lam: float) -> optax.Schedule:
  r"""For strongly convex expected losses, :math:`\eta_t = 2 / (\lambda t)`, t from 1 on.

  Args:
    lam: :math:`\lambda`, above 0, of the strong convexity.

  Returns:
    A schedule of the step count, which is t - 1.

  Raises:
    ValueError: `lam` is not above 0.

  Notes:
    Twice the step of gradient descent on such losses: optimism moves twice, and the term of
    the lagging point in the proof is cancelled by half of the strong convexity.

  References:
    [11] Chen, Zhang, Tu, Zhao, Zhang, "Optimistic Online Mirror Descent for Bridging
      Stochastic and Adversarial Online Convex Optimization", 2024, arXiv:2302.04552

  Example:
    >>> schedule = sea_strongly_convex(lam=0.5)
    >>> schedule(0), schedule(3)
    (4.0, 1.0)
  """
  check.above("lam", lam, 0)
  return lambda count: 2 / (lam * (count + 1))
