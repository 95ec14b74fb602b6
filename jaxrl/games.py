"""Games of several players who learn by gradients, as pure scans.

Every player has a loss that depends on the actions of all, and an optimizer of its own, to which
its action is the parameters. A player who maximises has the negative of its payoff as loss.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax

from jaxrl import check, train

Actions: TypeAlias = tuple[Any, ...]
"""One tree for each player."""
Feedback: TypeAlias = Callable[[Actions, jax.Array], Actions]
"""`feedback(actions, key)`: to each player the gradient of its own loss in its own action."""
Loss: TypeAlias = Callable[..., jax.Array]
"""`loss(*actions)`: what a player loses by the actions of all."""


class Game(NamedTuple):
  """What was played.

  Attributes:
    actions: each player's in every round, on a new first axis.
    answers: what each player would say after the round: its method's `eval_params`.
    states: of the optimizers, at the end.
  """

  actions: Actions
  answers: Actions
  states: tuple[Any, ...]


def gradients(losses: Sequence[Loss]) -> Feedback:
  """Exact feedback: each player's gradient of its own loss.

  Args:
    losses: one for each player.

  Returns:
    A feedback that ignores its key.

  Example:
    >>> import jax
    >>> product = gradients([lambda x, y: x * y, lambda x, y: -x * y])
    >>> [float(g) for g in product((2.0, 3.0), jax.random.key(0))]
    [3.0, -2.0]
  """

  def feedback(actions, key):
    del key
    return tuple(jax.grad(loss, player)(*actions) for player, loss in enumerate(losses))

  return feedback


def with_noise(
  feedback: Feedback, *, additive: float = 0.0, multiplicative: float = 0.0
) -> Feedback:
  r"""Feedback :math:`g (1 + \sigma_M \xi) + \sigma_A \zeta`, with standard normal noise.

  Every entry of every player's gradient has noise of its own in every round.

  Args:
    feedback: without noise.
    additive: :math:`\sigma_A`, at least 0: noise that stays at an equilibrium.
    multiplicative: :math:`\sigma_M`, at least 0: noise that vanishes with the gradient.

  Returns:
    A feedback.

  Raises:
    ValueError: a size is negative.

  Example:
    >>> import jax
    >>> noisy = with_noise(gradients([lambda x: x**2]), multiplicative=1.0)
    >>> [float(g) for g in noisy((0.0,), jax.random.key(0))]
    [0.0]
  """
  check.at_least("additive", additive, 0)
  check.at_least("multiplicative", multiplicative, 0)

  def noisy(actions, key):
    exact_key, xi_key, zeta_key = jax.random.split(key, 3)
    exact = feedback(actions, exact_key)
    xi, zeta = (optax.tree.random_like(k, exact, jax.random.normal) for k in (xi_key, zeta_key))
    return jax.tree.map(
      lambda g, m, a: g * (1 + multiplicative * m) + additive * a, exact, xi, zeta
    )

  return noisy


def play(
  feedback: Feedback,
  optimizers: Sequence[optax.GradientTransformation],
  start: Sequence[Any],
  rounds: int,
  key: jax.Array,
) -> Game:
  """Lets all players learn at the same time, each from its own gradients alone.

  Args:
    feedback: what the players are told of a round.
    optimizers: one for each player; none that needs `value_fn`.
    start: each player's first action.
    rounds: how many, at least 1; a Python integer.
    key: of the feedback's noise.

  Returns:
    The game, one compiled scan.

  Raises:
    ValueError: there are not as many optimizers as first actions, or no rounds.

  Example:
    >>> import jax, jax.numpy as jnp
    >>> from optimizers.og_plus import og_plus
    >>> product = gradients([lambda x, y: x * y, lambda x, y: -x * y])
    >>> game = play(product, 2 * [og_plus(0.3, 0.3)], [1.0, 1.0], 200, jax.random.key(0))
    >>> x, y = game.actions
    >>> bool(jnp.hypot(x, y)[-1] < 1e-3)
    True
  """
  check.whole("rounds", rounds, 1)
  if len(optimizers) != len(start):
    raise ValueError(f"optimizers must be as many as the {len(start)} players of start")
  learners = [optax.with_extra_args_support(optimizer) for optimizer in optimizers]
  actions = tuple(
    jax.tree.map(lambda x: jnp.asarray(x, jnp.result_type(float, x)), a) for a in start
  )

  def step(carry, round_key):
    actions, states = carry
    told = feedback(actions, round_key)
    moves = [
      learner.update(gradient, state, action)
      for learner, gradient, state, action in zip(learners, told, states, actions, strict=True)
    ]
    after = tuple(
      optax.apply_updates(action, move) for action, (move, _) in zip(actions, moves, strict=True)
    )
    states = tuple(state for _, state in moves)
    answers = tuple(map(train.eval_params, states, after))
    return (after, states), (actions, answers)

  @jax.jit
  def run(actions, keys):
    states = tuple(learner.init(action) for learner, action in zip(learners, actions, strict=True))
    (_, states), played = jax.lax.scan(step, (actions, states), keys)
    return Game(*played, states)

  return run(actions, jax.random.split(key, rounds))


def regrets(losses: Sequence[Loss], actions: Actions, comparators: Sequence[Any]) -> jax.Array:
  r"""Each player's regret against one fixed action, the others playing what they played.

  .. math::
    R_i(T) = \sum_{t \le T} \ell_i(x^t_i, x^t_{-i}) - \ell_i(u_i, x^t_{-i})

  Args:
    losses: one for each player.
    actions: as `play` gives them.
    comparators: u, one for each player.

  Returns:
    The regrets after every round, `[players, rounds]`.

  Example:
    >>> import jax.numpy as jnp
    >>> losses = [lambda x, y: x * y, lambda x, y: -x * y]
    >>> print(regrets(losses, (jnp.array([1.0, 2.0]), jnp.array([1.0, 1.0])), [0.0, 2.0]))
    [[1. 3.]
     [1. 3.]]
  """

  def regret(player, loss):
    def of_round(*played):
      other = (*played[:player], comparators[player], *played[player + 1 :])
      return loss(*played) - loss(*other)

    return jnp.cumsum(jax.vmap(of_round)(*actions))

  return jnp.stack([regret(player, loss) for player, loss in enumerate(losses)])
