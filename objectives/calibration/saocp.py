"""Online conformal prediction: the quantile of a stream of scores, followed through its shifts."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl import check, reduce

from ._calibrator import OnlineCalibrator

CLOCK_BITS = 31  # of the int32 that counts rounds
LONGEST = 2**CLOCK_BITS - 1


class SfOgdState(NamedTuple):
  """State of `sf_ogd`: the radius, and the sum of its squared gradients."""

  radius: jax.Array
  squares: jax.Array


class SaocpState(NamedTuple):
  """State of `saocp`: the count of scores, and the experts, one an entry.

  Attributes:
    count: scores so far.
    born: the round in which an expert began, from 1 on; 0 where there never was one.
    experts: their radii.
    z: the sum of an expert's gains over the mixture.
    wz: their sum, each times the weight of its round.
  """

  count: jax.Array
  born: jax.Array
  experts: SfOgdState
  z: jax.Array
  wz: jax.Array


def sf_ogd(scale: float, *, coverage: float = 0.9) -> OnlineCalibrator:
  r"""Scale-free online gradient descent on the pinball loss of one radius.

  From :math:`r_1 = 0`, with the scores :math:`s_t` and the coverage q,

  .. math::
    g_t = (1 - q) \, 1[s_t < r_t] - q \, 1[s_t > r_t], \qquad
    r_{t+1} = \max\Big( 0, r_t - \frac{D}{\sqrt 3} \frac{g_t}{\sqrt{\sum_{s \le t} g_s^2}} \Big)

  Args:
    scale: :math:`D`, above 0: the largest radius that may be needed. The paper's code takes
      :math:`\sqrt 3` times the largest score of a calibration set.
    coverage: q, in (0, 1), the share of scores that are to lie under the radius.

  Returns:
    A calibrator of scores that are at least 0.

  Raises:
    ValueError: an argument is out of range.

  Cost: two numbers.

  References:
    [272] Bhatnagar, Wang, Xiong, Bai, "Improved Online Conformal Prediction via Strongly
      Adaptive Online Learning", 2023, arXiv:2302.07869

  Example:
    >>> calibrator = sf_ogd(3.0**0.5, coverage=0.75)
    >>> state = calibrator.update(calibrator.init(), 2.0)
    >>> float(calibrator.predict(state))  # the first step is D / sqrt(3) long
    1.0
  """
  _check(scale, coverage)

  def init():
    return SfOgdState(jnp.zeros([]), jnp.zeros([]))

  def update(state, score):
    score = jnp.asarray(score, state.radius.dtype)
    after = _descended(state, score, scale, coverage)
    return _where(jnp.isfinite(score), after, state)

  return OnlineCalibrator(init, lambda state: state.radius, update)


def saocp(scale: float, *, coverage: float = 0.9, lifetime: int = 8) -> OnlineCalibrator:
  r"""A mixture of `sf_ogd` learners, one born each round, that regains coverage after a shift.

  In round t, before it learns from the score :math:`s_t`, an expert is born with the radius of
  the mixture at hand; it lives for :math:`\mathrm{lifetime} \cdot 2^u` further rounds, where
  :math:`2^u` is the largest power of two that divides t. Experts i, born at :math:`t_i`, are
  mixed by coin betting,

  .. math::
    p_i \propto \frac{\max(0, w_i)}{t_i^2 (1 + \lfloor \log_2 t_i \rfloor)}, \qquad
    w_i = \frac{z_i}{n_i} (1 + v_i), \qquad r = \sum_i p_i r_i

  (by the fractions alone where all weights are 0), :math:`n_i` being the expert's rounds so
  far. With the pinball loss :math:`\ell` at coverage q, each round adds

  .. math::
    c_i = \mathrm{clip}\Big( \frac{\ell(s_t, r) - \ell(s_t, r_i)}{D \max(q, 1 - q)},
    -1[w_i > 0], 1 \Big)

  to :math:`z_i` and :math:`c_i w_i` to :math:`v_i`, and takes a step of `sf_ogd` in each
  :math:`r_i`.

  Args:
    scale: :math:`D`, above 0: the largest radius that may be needed. The paper's code takes
      :math:`\sqrt 3` times the largest score of a calibration set.
    coverage: q, in (0, 1), the share of scores that are to lie under the radius.
    lifetime: of an expert born in an odd round, at least 1.

  Returns:
    A calibrator of scores that are at least 0.

  Raises:
    ValueError: an argument is out of range.

  Cost: `31 * (lifetime // 2 + 1)` experts of five numbers each, enough for any int32 count of
    rounds. Of each u no more than `lifetime // 2 + 1` live at a time, each in its own slot.

  Notes:
    As in the official code an expert is dropped in the round after its last, so that it lives
    for `lifetime * 2**u + 1` rounds. There, one clock counts the scores of all horizons of a
    forecast together; here each stream has its own. A newborn expert has the mixture's radius,
    and so a first gain of 0 but for rounding, by whose sign the lower bound of c would swing:
    here gains of the size of rounding are 0.

  References:
    [272] Bhatnagar, Wang, Xiong, Bai, "Improved Online Conformal Prediction via Strongly
      Adaptive Online Learning", 2023, arXiv:2302.07869

  Example:
    >>> import jax, jax.numpy as jnp
    >>> calibrator = saocp(20.0, coverage=0.9)
    >>> scores = jnp.abs(jax.random.normal(jax.random.key(0), (400,)))
    >>> scores = scores.at[200:].multiply(4)
    >>> def step(state, score):
    ...   return calibrator.update(state, score), score <= calibrator.predict(state)
    >>> _, covered = jax.lax.scan(step, calibrator.init(), scores)
    >>> bool(jnp.mean(covered[300:]) > 0.8)
    True
  """
  _check(scale, coverage)
  check.whole("lifetime", lifetime, 1)
  ring = lifetime // 2 + 1

  def init():
    nothing = jnp.zeros(CLOCK_BITS * ring)
    never = jnp.zeros(nothing.shape, jnp.int32)
    experts = SfOgdState(nothing, nothing)
    return SaocpState(jnp.zeros([], jnp.int32), never, experts, nothing, nothing)

  def weights(state, age):
    return jnp.where(age > 0, state.z / jnp.maximum(age, 1) * (1 + state.wz), 0)

  def mixture(state, age):
    """The radius by those who are alive after the drop of round `count`."""
    born = jnp.maximum(state.born, 1)
    living = (state.born > 0) & (state.count - born <= _lifetime(born, lifetime))
    prior = 1 / (jnp.asarray(born, state.z.dtype) ** 2 * (CLOCK_BITS + 1 - jax.lax.clz(born)))
    prior = jnp.where(living, prior, 0)
    p = jnp.where(living, prior * jnp.maximum(weights(state, age), 0), 0)
    p = jnp.where(jnp.sum(p) > 0, p, prior)
    return reduce.ratio(jnp.sum(p * state.experts.radius), jnp.sum(p))

  def predict(state):
    return mixture(state, state.count - state.born + 1)

  def update(state, score):
    score = jnp.asarray(score, state.z.dtype)
    t = state.count + 1
    u = _twos(t)
    slot = u * ring + jax.lax.shift_right_logical(t, u + 1) % ring
    born = state.born.at[slot].set(t)
    age = t - born
    radius, squares = state.experts
    experts = SfOgdState(radius.at[slot].set(predict(state)), squares.at[slot].set(0))
    begun = SaocpState(t, born, experts, state.z.at[slot].set(0), state.wz.at[slot].set(0))

    w = weights(begun, age)
    theirs = _pinball(score, mixture(begun, age), coverage)
    own = _pinball(score, experts.radius, coverage)
    rounding = 8 * jnp.finfo(own.dtype).eps * (theirs + own)
    gain = jnp.where(jnp.abs(theirs - own) > rounding, theirs - own, 0)
    gain = gain / scale / max(coverage, 1 - coverage)
    gain = jnp.clip(gain, -jnp.asarray(w > 0, gain.dtype), 1)
    experts = _descended(experts, score, scale, coverage)
    after = SaocpState(t, born, experts, begun.z + gain, begun.wz + gain * w)
    return _where(jnp.isfinite(score), after, state)

  return OnlineCalibrator(init, predict, update)


def _check(scale: float, coverage: float) -> None:
  check.above("scale", scale, 0)
  check.above("coverage", coverage, 0)
  check.below("coverage", coverage, 0, 1)


def _descended(state: SfOgdState, score: jax.Array, scale: float, coverage: float) -> SfOgdState:
  """The radii after a step each."""
  gradient = jnp.where(score < state.radius, 1 - coverage, 0.0)
  gradient = jnp.where(score > state.radius, -coverage, gradient)
  squares = state.squares + gradient**2
  step = scale / np.sqrt(3) * reduce.ratio(gradient, jnp.sqrt(squares))
  return SfOgdState(jnp.maximum(0, state.radius - step), squares)


def _pinball(score: jax.Array, radius: jax.Array, coverage: float) -> jax.Array:
  return jnp.maximum(coverage * (score - radius), (1 - coverage) * (radius - score))


def _twos(t: jax.Array) -> jax.Array:
  """How often 2 divides t."""
  return jax.lax.population_count((t & -t) - 1)


def _lifetime(born: jax.Array, lifetime: int) -> jax.Array:
  """Of the experts born in these rounds, and no longer than the clock runs."""
  longest = LONGEST // lifetime
  twos = jnp.minimum(_twos(born), longest.bit_length() - 1)
  return lifetime * jnp.left_shift(1, twos)


def _where(condition: jax.Array, one: Any, other: Any) -> Any:
  return jax.tree.map(lambda a, b: jnp.where(condition, a, b), one, other)
