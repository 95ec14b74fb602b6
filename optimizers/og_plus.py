"""OG+ and OptDA+: optimistic gradients that look ahead by longer steps than they move."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax

from jaxrl import check

from ._online import norm, rate_at, root_of_squares, stepped, towards
from ._sharpness import wide


class OgPlusState(NamedTuple):
  """State of the four methods.

  Attributes:
    count: rounds so far.
    base: the base point.
    start: of dual averaging, the parameters at the start.
    total: of dual averaging, the sum of all gradients.
    gradients: of adaptive rates, the root of the sum of all gradients' squared norms.
    moves: of adaptive rates, the same of the base point's moves.
  """

  count: jax.typing.ArrayLike
  base: Any
  start: Any
  total: Any
  gradients: Any
  moves: Any


_Rates: TypeAlias = Callable[[OgPlusState], tuple[jax.typing.ArrayLike, jax.typing.ArrayLike]]


def og_plus(
  learning_rate: float | optax.Schedule, extrapolation_rate: float | optax.Schedule
) -> optax.GradientTransformationExtraArgs:
  r"""Optimistic gradient with a step size of its own for the extrapolation.

  The parameters are :math:`X_{t+1/2}`, which a player plays in round t = 1, 2, ... and at
  which the gradient :math:`g_t` of its own loss was taken; the answer, `eval_params`, is the
  base point. From :math:`X_{3/2} = X_1`,

  .. math::
    X_{t+1} = X_t - \eta_{t+1} g_t, \qquad
    X_{t+3/2} = X_{t+1} - \gamma_{t+1} g_t .

  Where a game's gradients are noisy, small :math:`\eta` keeps the noise out of the base point,
  and large :math:`\gamma \ge \eta` keeps the stabilising look ahead. A player who maximises
  hands in the negative gradient. It is a whole recipe.

  Args:
    learning_rate: :math:`\eta`, of the base point's steps, at least 0, or a schedule of the
      step count.
    extrapolation_rate: :math:`\gamma`, at least 0, or a schedule.

  Returns:
    A recipe whose `update` needs `params`.

  Raises:
    ValueError: a rate is negative, or `update` was called without `params`.

  Cost: one gradient a round; 4 bytes a parameter.

  Notes:
    Against additive noise the paper shrinks the rates like :math:`\gamma \sim t^{-1/4} /
    \sqrt{\log t}` and :math:`\eta \sim t^{-1/2} / \log t`; if noise is but multiplicative, of
    variance :math:`\sigma^2`, both stay constant, :math:`\gamma` of the order of
    :math:`1 / (L \sqrt{1 + \sigma^2})` and :math:`\eta` smaller by :math:`1 + \sigma^2`.

  References:
    [225] Hsieh, Antonakopoulos, Cevher, Mertikopoulos, "No-Regret Learning in Games with Noisy
      Feedback: Faster Rates and Adaptivity via Learning Rate Separation", 2022,
      arXiv:2206.06015

  Example:
    >>> import jax.numpy as jnp
    >>> optimizer, x = og_plus(0.125, 0.5), jnp.array(1.0)
    >>> updates, state = optimizer.update(jnp.array(2.0), optimizer.init(x), x)
    >>> float(updates), float(eval_params(state, x))  # -(0.125 + 0.5) * 2
    (-1.25, 0.75)
  """
  rates = _given(learning_rate, extrapolation_rate)
  return _recipe("og_plus", rates, adaptive=False, averaging=False)


def opt_da_plus(
  learning_rate: float | optax.Schedule, extrapolation_rate: float | optax.Schedule
) -> optax.GradientTransformationExtraArgs:
  r"""Optimistic dual averaging with a step size of its own for the extrapolation.

  As `og_plus`, but the base point is made anew from all gradients,

  .. math::
    X_{t+1} = X_1 - \eta_{t+1} \sum_{s \le t} g_s, \qquad
    X_{t+3/2} = X_{t+1} - \gamma_{t+1} g_t,

  so that a rate which shrinks forgets no gradient more than another. With constant rates both
  are the same.

  Args:
    learning_rate: :math:`\eta`, at least 0, or a schedule of the step count.
    extrapolation_rate: :math:`\gamma`, at least 0, or a schedule.

  Returns:
    A recipe whose `update` needs `params`.

  Raises:
    ValueError: a rate is negative, or `update` was called without `params`.

  Cost: one gradient a round; 12 bytes a parameter.

  References:
    [225] Hsieh, Antonakopoulos, Cevher, Mertikopoulos, "No-Regret Learning in Games with Noisy
      Feedback: Faster Rates and Adaptivity via Learning Rate Separation", 2022,
      arXiv:2206.06015

  Example:
    >>> import jax.numpy as jnp, optax
    >>> optimizer, x = opt_da_plus(optax.linear_schedule(1.0, 0.0, 4), 0.0), jnp.array(0.0)
    >>> state = optimizer.init(x)
    >>> for _ in range(2):
    ...   updates, state = optimizer.update(jnp.array(1.0), state, x)
    ...   x = x + updates
    >>> float(x)  # -0.75 * (1 + 1)
    -1.5
  """
  rates = _given(learning_rate, extrapolation_rate)
  return _recipe("opt_da_plus", rates, adaptive=False, averaging=True)


def adaptive_og_plus(
  learning_rate: float | optax.Schedule = 1.0, *, q: float = 0.25
) -> optax.GradientTransformationExtraArgs:
  r"""OG+ by rates that a player makes from the gradients it has seen.

  .. math::
    \gamma_{t+1} = c \Big( 1 + \sum_{s < t} \|g_s\|^2 \Big)^{q - 1/2}, \qquad
    \eta_{t+1} = c \Big( 1 + \sum_{s < t} \|g_s\|^2 + \|X_s - X_{s+1}\|^2 \Big)^{-1/2}

  Neither knows the gradient that it multiplies. `adaptive_opt_da_plus` has the stronger theory:
  it does without bounded iterates.

  Args:
    learning_rate: the factor :math:`c`, at least 0, or a schedule of the step count; 1 in the
      paper.
    q: how far apart the rates grow, in [0, 0.25]; at 0 they are nearly the same.

  Returns:
    A recipe whose `update` needs `params`.

  Raises:
    ValueError: an argument is out of range, or `update` was called without `params`.

  Cost: one gradient a round; 4 bytes a parameter.

  Notes:
    Norms are those of the whole tree: of one player. In a game of several each has an optimizer
    of its own (`jaxrl.games.play`). The paper's q is in (0, 0.25].

  References:
    [225] Hsieh, Antonakopoulos, Cevher, Mertikopoulos, "No-Regret Learning in Games with Noisy
      Feedback: Faster Rates and Adaptivity via Learning Rate Separation", 2022,
      arXiv:2206.06015

  Example:
    >>> import jax.numpy as jnp
    >>> optimizer, x = adaptive_og_plus(), jnp.array(0.0)
    >>> state = optimizer.init(x)
    >>> updates, state = optimizer.update(jnp.array(4.0), state, x)
    >>> float(updates), float(state.gradients), float(state.moves)  # -(1 + 1) * 4
    (-8.0, 4.0, 4.0)
  """
  rates = _of_the_past(learning_rate, q)
  return _recipe("adaptive_og_plus", rates, adaptive=True, averaging=False)


def adaptive_opt_da_plus(
  learning_rate: float | optax.Schedule = 1.0, *, q: float = 0.25
) -> optax.GradientTransformationExtraArgs:
  r"""OptDA+ by rates that a player makes from the gradients it has seen.

  The rates are those of `adaptive_og_plus`, the steps those of `opt_da_plus`. Whatever the game
  and the noise, it needs no tuning.

  Args:
    learning_rate: the factor :math:`c`, at least 0, or a schedule of the step count; 1 in the
      paper.
    q: how far apart the rates grow, in [0, 0.25]; at 0 they are nearly the same.

  Returns:
    A recipe whose `update` needs `params`.

  Raises:
    ValueError: an argument is out of range, or `update` was called without `params`.

  Cost: one gradient a round; 12 bytes a parameter.

  References:
    [225] Hsieh, Antonakopoulos, Cevher, Mertikopoulos, "No-Regret Learning in Games with Noisy
      Feedback: Faster Rates and Adaptivity via Learning Rate Separation", 2022,
      arXiv:2206.06015

  Example:
    >>> import jax.numpy as jnp
    >>> optimizer, x = adaptive_opt_da_plus(), jnp.array(0.0)
    >>> updates, _ = optimizer.update(jnp.array(4.0), optimizer.init(x), x)
    >>> float(updates)  # -(1 + 1) * 4
    -8.0
  """
  rates = _of_the_past(learning_rate, q)
  return _recipe("adaptive_opt_da_plus", rates, adaptive=True, averaging=True)


def eval_params(state: OgPlusState, params: Any) -> Any:
  """The base point, into which less noise gets than into what is played."""
  return jax.tree.map(lambda x, w: x.astype(w.dtype), state.base, params)


def _given(learning_rate: Any, extrapolation_rate: Any) -> _Rates:
  check.at_least("learning_rate", learning_rate, 0)
  check.at_least("extrapolation_rate", extrapolation_rate, 0)
  return lambda state: (
    rate_at(learning_rate, state.count),
    rate_at(extrapolation_rate, state.count),
  )


def _of_the_past(learning_rate: Any, q: jax.typing.ArrayLike) -> _Rates:
  check.at_least("learning_rate", learning_rate, 0)
  check.between("q", q, 0, 0.25)

  def rates(state):
    c = rate_at(learning_rate, state.count)
    eta = c / root_of_squares(1.0, state.gradients, state.moves)
    return eta, c * root_of_squares(1.0, state.gradients) ** (2 * q - 1)

  return rates


def _recipe(
  name: str, rates: _Rates, *, adaptive: bool, averaging: bool
) -> optax.GradientTransformationExtraArgs:
  """The method by `rates`, which are those of the base point and of the extrapolation."""

  def init_fn(params):
    base = wide(params)
    nothing = jnp.zeros([], norm(base).dtype) if adaptive else ()
    start, total = (base, jax.tree.map(jnp.zeros_like, base)) if averaging else ((), ())
    return OgPlusState(jnp.zeros([], jnp.int32), base, start, total, nothing, nothing)

  def update_fn(updates, state, params=None, **extra_args):
    del extra_args
    check.params(name, params)
    eta, gamma = rates(state)
    gradient = wide(updates)
    total = jax.tree.map(jnp.add, state.total, gradient) if averaging else ()
    base = stepped(state.start, eta, total) if averaging else stepped(state.base, eta, gradient)
    gradients, moves = state.gradients, state.moves
    if adaptive:
      gradients = root_of_squares(gradients, norm(gradient))
      moves = root_of_squares(moves, norm(jax.tree.map(jnp.subtract, base, state.base)))

    updates = towards(stepped(base, gamma, gradient), params)
    count = optax.safe_increment(state.count)
    return updates, OgPlusState(count, base, state.start, total, gradients, moves)

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)
