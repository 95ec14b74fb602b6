"""Values of experts who sleep and of groupwise regression: NumPy, closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optimizers.solvers.experts import ada_normal_hedge, hedge
from optimizers.solvers.groupwise_sleeping_experts import (
  groupwise_sleeping_experts,
  online_ridge,
)
from tests.properties import assert_identical, types_of

ROUNDS, NUMBER, SIZE = 40, 4, 3
RNG = np.random.default_rng(0)
LOSSES = RNG.random((ROUNDS, NUMBER)) ** [1, 2, 3, 4]
AWAKE = RNG.random((ROUNDS, NUMBER)) < 0.6
AWAKE[:, 0] |= ~AWAKE.any(axis=1)


def weighed(experts, losses, awake):
  """The weights of each round."""

  def step(state, given):
    return experts.update(state, *given), experts.weights(state, given[1])

  run = jax.jit(lambda *given: jax.lax.scan(step, experts.init(losses.shape[1]), given)[1])
  return run(jnp.asarray(losses), jnp.asarray(awake))


def by_hand(weight, losses, awake):
  """The same in NumPy, from w(R, C)."""
  regret, spent, seen = np.zeros(NUMBER), np.zeros(NUMBER), []
  for loss, on in zip(losses, awake, strict=True):
    w = on * weight(regret, spent)
    p = w / w.sum() if w.sum() > 0 else on / on.sum()
    r = on * (p @ loss - loss)
    regret, spent = regret + r, spent + abs(r)
    seen.append(p)
  return np.array(seen)


def ada_normal(R, C):
  potential = lambda R: np.exp(np.maximum(R, 0) ** 2 / (3 * (C + 1)))  # noqa: E731
  return (potential(R + 1) - potential(R - 1)) / 2


@pytest.mark.parametrize("awake", [AWAKE, np.ones_like(AWAKE)])
def test_ada_normal_hedge_is_the_algorithm_of_the_paper(awake):
  found = weighed(ada_normal_hedge(), LOSSES, awake)
  np.testing.assert_allclose(found, by_hand(ada_normal, LOSSES, awake), rtol=2e-4, atol=1e-6)
  assert np.ptp(found, axis=0).min() > 0.2


def test_ada_normal_hedge_does_not_overflow():
  losses = np.tile([0.0, 1.0, 1.0, 0.5], (4000, 1))
  found = weighed(ada_normal_hedge(), losses, np.ones_like(losses, bool))
  np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-5)
  assert found[-1, 0] > 0.95


def test_hedge_among_those_awake():
  found = weighed(hedge(0.7), LOSSES, AWAKE)
  np.testing.assert_allclose(
    found, by_hand(lambda R, C: np.exp(0.7 * R), LOSSES, AWAKE), rtol=1e-4, atol=1e-6
  )


def test_hedge_is_the_exponential_of_the_losses_where_nobody_sleeps():
  expected = np.exp(-0.7 * (np.cumsum(LOSSES, axis=0) - LOSSES))
  expected /= expected.sum(axis=1, keepdims=True)
  found = weighed(hedge(0.7), LOSSES, np.ones_like(AWAKE))
  np.testing.assert_allclose(found, expected, rtol=1e-4)


def examples(rounds=ROUNDS, noise=0.1, seed=1):
  """Inputs, membership in two groups that overlap and in that of all, and targets."""
  rng = np.random.default_rng(seed)
  x = rng.normal(size=(rounds, SIZE)).astype(np.float32)
  first, second = rng.random((2, rounds)) < [[0.5], [0.3]]
  slopes = np.where(first, 1, -1)[:, None] * [1.0, 0.5, 0] + second[:, None] * [0, 0, 2.0]
  y = np.sum(slopes * x, axis=1) + noise * rng.normal(size=rounds)
  groups = np.stack([np.ones(rounds, bool), first, second, ~first], axis=1)
  return x, groups, y.astype(np.float32)


def predicted(method, x, groups, y):
  def step(state, given):
    inputs, held, target = given
    return method.update(state, inputs, held, target), method.predict(state, inputs, held)

  run = jax.jit(lambda *given: jax.lax.scan(step, method.init(), given))
  return run(*map(jnp.asarray, (x, groups, y)))


def ridge(x, y, lam):
  """Each target predicted from those before it."""
  found = []
  for t in range(len(x)):
    a = lam * np.eye(SIZE) + x[:t].T @ x[:t]
    found.append(x[t] @ np.linalg.solve(a, x[:t].T @ y[:t]))
  return np.array(found)


@pytest.mark.parametrize("number", [1, 3])
def test_groupwise_sleeping_experts_of_one_group_is_its_learner(number):
  x, _, y = examples()
  groups = np.zeros((ROUNDS, number), bool)
  groups[:, 0] = True
  _, found = predicted(
    groupwise_sleeping_experts(online_ridge(SIZE, lam=0.5), number), x, groups, y
  )
  np.testing.assert_allclose(found, ridge(x, y, 0.5), rtol=1e-3, atol=1e-4)


def test_online_ridge_is_the_solution_of_its_equations():
  x, _, y = examples()
  learner = online_ridge(SIZE, lam=2.0)
  state = learner.init()
  for t in range(10):
    assert types_of(learner.update(state, x[t], y[t])) == types_of(state)
    state = learner.update(state, jnp.asarray(x[t]), y[t])
  np.testing.assert_allclose(state.inverse, np.linalg.inv(2 * np.eye(3) + x[:10].T @ x[:10]), 1e-4)


def test_groupwise_sleeping_experts_mixes_the_learners_of_the_groups_that_hold():
  x, groups, y = examples()
  bound = 3.0
  own = np.zeros((ROUNDS, 4))
  for g in range(4):
    for t in range(ROUNDS):
      past = groups[:t, g]
      a = np.eye(SIZE) + x[:t][past].T @ x[:t][past]
      own[t, g] = x[t] @ np.linalg.solve(a, x[:t][past].T @ y[:t][past])
  losses = np.minimum(1, ((own - y[:, None]) / bound) ** 2)
  expected = np.sum(by_hand(ada_normal, losses, groups) * own, axis=1)
  method = groupwise_sleeping_experts(online_ridge(SIZE), 4, bound=bound)
  _, found = predicted(method, x, groups, y)
  np.testing.assert_allclose(found, expected, rtol=2e-3, atol=2e-4)


def test_groupwise_sleeping_experts_leaves_those_who_sleep_as_they_are():
  method = groupwise_sleeping_experts(online_ridge(SIZE), 2)
  state = method.init()
  update = jax.jit(method.update)
  after = update(state, jnp.ones(SIZE), jnp.array([True, False]), 1.0)
  second = lambda tree: jax.tree.map(lambda leaf: leaf[1], tree)  # noqa: E731
  assert_identical(second(after), second(state))
  nobody = jnp.array([False, False])
  assert_identical(update(state, jnp.ones(SIZE), nobody, 1.0), state)
  assert method.predict(after, jnp.ones(SIZE), nobody) == 0


def test_groupwise_sleeping_experts_are_good_in_every_group_where_one_ridge_is_not():
  x, groups, y = examples(1000)
  method = groupwise_sleeping_experts(online_ridge(SIZE), 4, bound=4.0)
  error = (np.asarray(predicted(method, x, groups, y)[1]) - y) ** 2
  single = (ridge(x, y, 1.0) - y) ** 2
  for g in (1, 3):
    held = groups[:, g]
    own = (ridge(x[held], y[held], 1.0) - y[held]) ** 2
    assert error[held].sum() < 1.15 * own.sum() < 0.7 * single[held].sum()


@pytest.mark.parametrize(
  ("make", "message"),
  [
    (lambda: hedge(-1), "learning_rate must be at least 0, got -1"),
    (lambda: online_ridge(0), "size must be a whole number of at least 1, got 0"),
    (lambda: online_ridge(1, lam=0), "lam must be above 0, got 0"),
    (lambda: groupwise_sleeping_experts(1, 1), "learner must be a OnlineRegression, got 1"),
    (lambda: groupwise_sleeping_experts(online_ridge(1), 0), "groups must be a whole number"),
    (lambda: groupwise_sleeping_experts(online_ridge(1), 1, bound=0), "bound must be above 0"),
    (lambda: groupwise_sleeping_experts(online_ridge(1), 1, experts=2), "must be a Experts"),
  ],
)
def test_experts_refuse(make, message):
  with pytest.raises((ValueError, TypeError)) as error:
    make()
  assert message in str(error.value)
