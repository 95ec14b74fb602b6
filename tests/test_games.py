"""Games: what is played, what is told, and what is regretted."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrl import games
from optimizers.og_plus import og_plus

PRODUCT = (lambda x, y: x @ y, lambda x, y: -x @ y)
START = (jnp.array([1.0, -2.0]), jnp.array([0.5, 1.0]))


def test_players_move_at_the_same_time_by_optimizers_of_their_own():
  game = games.play(
    games.gradients(PRODUCT), [optax.sgd(0.1), optax.sgd(0.3)], START, 20, jax.random.key(0)
  )
  x, y = (np.asarray(start, np.float64) for start in START)
  for t in range(20):
    np.testing.assert_allclose(game.actions[0][t], x, rtol=1e-4)
    np.testing.assert_allclose(game.actions[1][t], y, rtol=1e-4)
    x, y = x - 0.1 * y, y + 0.3 * x
  np.testing.assert_allclose(game.answers[0][-1], x, rtol=1e-4)


def test_three_players_with_trees_as_actions():
  losses = [
    lambda a, b, c: (a["x"] - b) ** 2,
    lambda a, b, c: (b - c[0]) ** 2,
    lambda a, b, c: (c[0] - 1) ** 2,
  ]
  game = games.play(
    games.gradients(losses), 3 * [optax.sgd(0.2)], ({"x": 0.0}, 0, [3.0]), 100, jax.random.key(0)
  )
  for played in jax.tree.leaves(game.actions):
    assert played.shape == (100,)
    np.testing.assert_allclose(played[-1], 1, atol=1e-5)


def test_answers_are_those_of_the_methods():
  game = games.play(games.gradients(PRODUCT), 2 * [og_plus(0.1, 0.4)], START, 5, jax.random.key(0))
  for player in range(2):
    np.testing.assert_array_equal(game.answers[player][-1], game.states[player].base)
    assert np.all(game.answers[player][-1] != game.actions[player][-1])


def test_noise_has_the_sizes_that_it_is_given():
  told = (jnp.array([2.0, 0.0]), jnp.array([-1.0]))
  noisy = games.with_noise(lambda actions, key: told, additive=0.5, multiplicative=2.0)
  draws = jax.jit(jax.vmap(lambda key: noisy((), key)))
  first, second = draws(jax.random.split(jax.random.key(0), 20000))
  np.testing.assert_allclose(jnp.mean(first, axis=0), [2, 0], atol=0.1)
  np.testing.assert_allclose(jnp.std(first, axis=0), [np.hypot(4, 0.5), 0.5], rtol=0.03)
  np.testing.assert_allclose(jnp.std(second), np.hypot(2, 0.5), rtol=0.03)
  assert abs(np.corrcoef(first[:, 0], second[:, 0])[0, 1]) < 0.03


def test_another_key_is_another_game_and_the_same_the_same():
  feedback = games.with_noise(games.gradients(PRODUCT), additive=0.1)
  play = lambda key: games.play(feedback, 2 * [optax.sgd(0.1)], START, 3, key).actions[0]  # noqa: E731
  one, same, other = jax.jit(jax.vmap(play))(jax.vmap(jax.random.key)(jnp.array([0, 0, 1])))
  np.testing.assert_array_equal(one, same)
  assert np.all(one[1:] != other[1:])


def test_regrets_of_a_product_played_by_hand():
  x, y = np.array([[1.0], [2.0], [-1.0]]), np.array([[1.0], [0.5], [3.0]])
  found = games.regrets(PRODUCT, (jnp.asarray(x), jnp.asarray(y)), [jnp.array([-1.0]), jnp.ones(1)])
  np.testing.assert_allclose(found[0], np.cumsum((x + 1) * y))
  np.testing.assert_allclose(found[1], np.cumsum(x * (1 - y)))


@pytest.mark.parametrize(
  ("make", "message"),
  [
    (lambda: games.play(None, [optax.sgd(1.0)], START, 1, None), "as many as the 2 players"),
    (lambda: games.play(None, 2 * [optax.sgd(1.0)], START, 0, None), "rounds must be a whole"),
    (lambda: games.with_noise(lambda *_: (), additive=-1), "additive must be at least 0, got -1"),
    (lambda: games.with_noise(lambda *_: (), multiplicative=-1), "multiplicative must be at"),
  ],
)
def test_games_refuse(make, message):
  with pytest.raises(ValueError, match=message):
    make()
