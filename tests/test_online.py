"""jaxrl.online against loops over all intervals and all sequences of comparators."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrl import online

ROUNDS, COMPARATORS = 7, 3


@pytest.fixture(scope="module")
def losses():
  return np.random.default_rng(0).normal(size=ROUNDS)


@pytest.fixture(scope="module")
def comparators():
  return np.random.default_rng(1).normal(size=(ROUNDS, COMPARATORS))


def regret_on(losses, comparators, first, last):
  """On the rounds from `first` to `last`, both included."""
  rounds = slice(first, last + 1)
  return losses[rounds].sum() - comparators[rounds].sum(axis=0).min()


def close(actual, expected):
  np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


def test_static_regret_is_that_of_the_interval_from_the_first_round(losses, comparators):
  expected = [regret_on(losses, comparators, 0, last) for last in range(ROUNDS)]
  close(online.static_regret(losses, comparators), expected)
  alone = np.cumsum(losses - comparators[:, 1])
  close(online.static_regret(losses, comparators[:, 1]), alone)
  close(online.dynamic_regret(losses, comparators[:, 1]), alone)


@pytest.mark.parametrize("switches", [0, 1, 2, ROUNDS, None])
def test_dynamic_regret_is_against_the_best_sequence_with_so_many_switches(
  losses, comparators, switches
):
  most = ROUNDS if switches is None else switches

  def regret(rounds):
    sums = [
      sum(comparators[t, k] for t, k in enumerate(sequence))
      for sequence in itertools.product(range(COMPARATORS), repeat=rounds)
      if np.count_nonzero(np.diff(sequence)) <= most
    ]
    return losses[:rounds].sum() - min(sums)

  expected = [regret(rounds) for rounds in range(1, ROUNDS + 1)]
  close(online.dynamic_regret(losses, comparators, switches), expected)


def test_adaptive_regret_is_that_of_the_worst_interval(losses, comparators):
  def worst(end):
    pairs = itertools.combinations_with_replacement(range(end + 1), 2)
    return max(regret_on(losses, comparators, *pair) for pair in pairs)

  close(online.adaptive_regret(losses, comparators), [worst(end) for end in range(ROUNDS)])


@pytest.mark.parametrize("length", [1, 3, ROUNDS])
def test_strongly_adaptive_regret_is_that_of_the_worst_interval_of_its_length(
  losses, comparators, length
):
  starts = range(ROUNDS - length + 1)
  expected = max(regret_on(losses, comparators, start, start + length - 1) for start in starts)
  close(online.strongly_adaptive_regret(losses, comparators, length), expected)


def test_adaptive_regret_is_the_largest_of_the_strongly_adaptive_ones(losses, comparators):
  lengths = range(1, ROUNDS + 1)
  largest = max(online.strongly_adaptive_regret(losses, comparators, n) for n in lengths)
  close(online.adaptive_regret(losses, comparators)[-1], largest)


def test_regrets_keep_their_digits_on_long_streams():
  losses = 1e4 + jnp.arange(20_000) % 3
  regret = online.static_regret(losses, losses - 0.5)
  np.testing.assert_allclose(regret[-1], 1e4, rtol=1e-5)


def test_regrets_can_be_compiled_and_vmapped(losses, comparators):
  both = jnp.stack([losses, 2 * losses])
  for regret in (online.static_regret, online.dynamic_regret, online.adaptive_regret):
    mapped = jax.jit(jax.vmap(regret, in_axes=(0, None)))(both, comparators)
    close(mapped, [regret(row, comparators) for row in both])


def with_extras(seen):
  """Gradient descent that checks what else it is given; where there are hints it adds them."""

  def update(updates, state, params=None, **extras):
    del updates
    seen.append("hint" in extras)
    right = extras["value"] == extras["value_fn"](params)
    step = extras.get("hint", -0.5 * extras["grad"])
    return jnp.where(right, step, jnp.nan), state

  return optax.GradientTransformationExtraArgs(lambda params: (), update)


def test_a_player_decides_before_it_sees_the_loss_and_gets_the_extras_of_a_train_step():
  targets, seen = np.array([2.0, 2.0, 0.0, -1.0]), []
  decisions = [0.0]
  for target in targets[:-1]:
    decisions.append(decisions[-1] - 0.5 * (decisions[-1] - target))
  played = online.play(with_extras(seen), online.quadratic(jnp.asarray(targets)), jnp.zeros(()))
  close(played.decisions, decisions)
  close(played.losses, (np.array(decisions) - targets) ** 2 / 2)
  assert seen and not any(seen)


def test_hints_go_with_their_rounds():
  hints = jnp.array([1.0, 2.0, 4.0])
  stream = online.linear(jnp.zeros(3))
  played = online.play(with_extras([]), stream, jnp.zeros(()), hints)
  close(played.decisions, [0, 1, 3])


def test_players_and_streams_take_trees():
  slopes = {"a": jnp.array([[1.0, 0.0], [0.0, 2.0]]), "b": jnp.array([3.0, 4.0])}
  stream = online.linear(slopes)
  start = {"a": jnp.array([1.0, 1.0]), "b": jnp.array(1.0)}
  played = online.play(optax.sgd(1.0), stream, start)
  close(played.losses, [1 + 3, 2 * 1 + 4 * (1 - 3)])
  close(online.losses_along(stream, played.decisions), played.losses)
  points = jax.tree.map(lambda x: jnp.stack([x, 0 * x]), start)
  close(online.losses_at(stream, points), [[4, 0], [6, 0]])
  moves = {"a": jnp.array([[0.0, 0.0], [2.0, 0.0]]), "b": jnp.array([0.0, 1.0])}
  close(online.path_length(moves), [0, np.sqrt(5)])


def test_the_variation_of_a_sea_stream_is_that_of_its_draws():
  angles = np.arange(2000) / 10
  means = jnp.asarray(np.stack([np.cos(angles), np.sin(angles), 0 * angles], axis=1), jnp.float32)
  slopes = online.sea_slopes(jax.random.key(0), means, 0.3)
  variation = online.sea_variation(means, 0.3)
  squares = np.cumsum(np.sum(np.asarray(slopes - means) ** 2, axis=1))
  np.testing.assert_allclose(variation.stochastic[-1], squares[-1], rtol=0.05)
  close(variation.adversarial, (2 * np.sin(0.05)) ** 2 * np.arange(2000))


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (lambda: online.static_regret(jnp.ones(3), jnp.ones((2, 2))), "got (3,) and (2, 2)"),
    (lambda: online.static_regret(jnp.ones((3, 1)), jnp.ones(3)), "losses must be [T]"),
    (lambda: online.dynamic_regret(jnp.ones(3), jnp.ones(3), -1), "switches must be a whole"),
    (
      lambda: online.strongly_adaptive_regret(jnp.ones(3), jnp.ones(3), 4),
      "length must be in [1, 3], got 4",
    ),
    (lambda: online.quadratic(jnp.ones(3), -1), "curvature must be at least 0, got -1"),
  ],
)
def test_bad_arguments_say_what_is_allowed(call, message):
  with pytest.raises(ValueError) as error:
    call()
  assert message in str(error.value)
