"""Values of mirror descent and its kin, in float64, over many rounds."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.optimize

from jaxrl import online
from optimizers.dual_averaging import dual_averaging
from optimizers.extragradient import eval_params, extragradient
from optimizers.frank_wolfe import frank_wolfe
from optimizers.mirror_descent import mirror_descent
from optimizers.mirror_maps import entropy, euclidean, mahalanobis, p_norm
from optimizers.optimistic_omd import optimistic_ensemble, optimistic_omd, optimistic_ons
from optimizers.projections import box, l1_ball, l2_ball, simplex
from optimizers.step_sizes import sea_adahedge, sea_convex, sea_strongly_convex
from tests import values

ROUNDS, SIZE, RADIUS = 40, 3, 0.9


@pytest.fixture(autouse=True)
def float64():
  with jax.enable_x64(True):
    yield


@pytest.fixture(scope="module")
def targets():
  return np.cumsum(np.random.default_rng(0).normal(size=(ROUNDS, SIZE)), axis=0) / 3


START = np.array([0.3, 0.5, 0.2])


def played(optimizer, targets, hints=None, start=START):
  """The decisions against the losses 0.5 |x - b_t|^2."""
  hints = None if hints is None else jnp.asarray(hints)
  stream = online.quadratic(jnp.asarray(targets))
  return jax.jit(lambda: online.play(optimizer, stream, jnp.asarray(start), hints))().decisions


def on_ball(x, radius=RADIUS):
  return x * min(1, radius / np.linalg.norm(x))


def close(actual, expected):
  assert actual.dtype == np.float64 and np.ptp(expected, axis=0).min() > 1e-2
  np.testing.assert_allclose(actual, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(
  ("name", "hint"), [("ball", "last"), ("external", "external"), ("none", "none")]
)
def test_optimistic_omd_on_a_ball_with_each_hint_is_the_one_of_pynol(name, hint):
  golden = values.load("optimistic_omd")
  matrix, steps = jnp.asarray(golden["matrix"]), jnp.asarray(golden["steps"])
  stream = online.Stream(
    lambda x, target: 0.5 * jnp.sum((matrix @ x - target) ** 2), jnp.asarray(golden["targets"])
  )
  optimizer = optimistic_omd(lambda count: steps[count], euclidean(l2_ball(0.7)), hint=hint)
  hints = jnp.roll(jnp.asarray(golden["hints"]), -1, axis=0)
  run = online.play(optimizer, stream, jnp.asarray(golden["start"]), hints)
  np.testing.assert_allclose(run.decisions, golden[name], rtol=1e-11)


def optimistic_by_numpy(targets, rate, update, project=on_ball, hint_of=lambda g: g):
  """The two steps of each round; `rate(t, state)` and `update(state, eta, error)` as written."""
  x = lagging = START
  hint, state, decisions = np.zeros(SIZE), 0.0, []
  for t, target in enumerate(targets, start=1):
    decisions.append(x)
    g = x - target
    eta = rate(t, state)
    lagging = project(lagging - eta * g)
    state = update(state, eta, np.linalg.norm(g - hint))
    hint = hint_of(g)
    x = project(lagging - rate(t + 1, state) * hint)
  return np.array(decisions)


def test_sea_convex_steps_of_optimistic_omd_are_the_papers(targets):
  diameter, bound, delta = 2 * RADIUS, 1.5, 0.7
  expected = optimistic_by_numpy(
    targets,
    lambda t, variation: diameter / np.sqrt(delta + 4 * bound**2 + variation),
    lambda variation, eta, error: variation + error**2,
  )
  optimizer = optimistic_omd(sea_convex(diameter, bound, delta), euclidean(l2_ball(RADIUS)))
  close(played(optimizer, targets), expected)


def test_sea_adahedge_steps_of_optimistic_omd_are_the_papers(targets):
  diameter = 2 * RADIUS
  expected = optimistic_by_numpy(
    targets,
    lambda t, total: diameter**2 / total if total else 0.0,
    lambda total, eta, e: total + (min(eta / 2 * e**2, diameter * e) if total else diameter * e),
  )
  optimizer = optimistic_omd(sea_adahedge(diameter), euclidean(l2_ball(RADIUS)))
  close(played(optimizer, targets), expected)


def test_sea_strongly_convex_steps_of_optimistic_omd_are_the_papers(targets):
  expected = optimistic_by_numpy(targets, lambda t, _: 2 / (1.6 * t), lambda *_: 0.0)
  optimizer = optimistic_omd(sea_strongly_convex(1.6), euclidean(l2_ball(RADIUS)))
  close(played(optimizer, targets), expected)


def test_errors_of_hints_from_elsewhere_count_in_the_step_size(targets):
  hints = np.random.default_rng(1).normal(size=(ROUNDS, SIZE))
  following = iter(hints)
  expected = optimistic_by_numpy(
    targets,
    lambda t, variation: 2 / np.sqrt(1 + variation),
    lambda variation, eta, error: variation + error**2,
    hint_of=lambda g: next(following),
  )
  optimizer = optimistic_omd(sea_convex(2.0, 0.0), euclidean(l2_ball(RADIUS)), hint="external")
  close(played(optimizer, targets, hints), expected)


def nearest_in_ball(point, matrix):
  """argmin over the ball of (x - z)^T H (x - z), by its multiplier."""
  if np.linalg.norm(point) <= RADIUS:
    return point

  def at(multiplier):
    return np.linalg.solve(matrix + multiplier * np.eye(SIZE), matrix @ point)

  distance = lambda m: np.linalg.norm(at(m)) - RADIUS  # noqa: E731
  return at(scipy.optimize.brentq(distance, 0, 1e6, xtol=1e-15, rtol=1e-15))


@pytest.mark.parametrize("domain", [None, l2_ball(RADIUS)])
def test_optimistic_ons_is_the_papers_with_dense_solves(domain, targets):
  bound, alpha = 2.0, 5.0
  diameter = 0.02 if domain is None else 2 * RADIUS
  beta = 0.5 * min(1 / (4 * bound * diameter), alpha)
  project = (lambda z, h: z) if domain is None else nearest_in_ball
  x = lagging = START
  matrix, expected = (1 + beta * bound**2 / 2) * np.eye(SIZE), []
  for target in targets:
    expected.append(x)
    g = x - target
    lagging = project(lagging - np.linalg.solve(matrix, g), matrix)
    matrix = matrix + beta / 2 * np.outer(g, g)
    x = project(lagging - np.linalg.solve(matrix, g), matrix)
  optimizer = optimistic_ons(diameter=diameter, bound=bound, alpha=alpha, projection=domain)
  actual = played(optimizer, targets)
  assert np.ptp(np.linalg.norm(expected, axis=1)) > 0.1
  np.testing.assert_allclose(actual, expected, atol=1e-8)


def test_optimistic_ensemble_is_the_one_of_pynol_to_ten_digits():
  golden = values.load("optimistic_ensemble")
  smoothness = float(golden["smoothness"])
  optimizer = optimistic_ensemble(
    diameter=2 * golden["radius"],
    bound=golden["bound"],
    smoothness=smoothness,
    steps=len(golden["targets"]),
    projection=l2_ball(golden["radius"]),
  )
  stream = online.quadratic(jnp.asarray(golden["targets"]), smoothness)
  run = online.play(optimizer, stream, jnp.asarray(golden["start"]))
  np.testing.assert_allclose(run.decisions, golden["played"], rtol=1e-10)


def test_optimistic_ensemble_tunes_how_fast_it_weighs(targets):
  diameter, bound, smoothness = 2 * RADIUS, 3.0, 0.02
  ratio = bound**2 * ROUNDS / (8 * smoothness**2 * diameter**2)
  count = int(np.ceil(0.5 * np.log2(ratio))) + 1
  smallest = np.sqrt(diameter**2 / (8 * bound**2 * ROUNDS))
  pool = np.minimum(1 / (8 * smoothness), smallest * 2.0 ** np.arange(count))
  cap = 1 / (8 * diameter**2 * smoothness)
  lagging = points = np.tile(START, (count, 1))
  weights, lost, foretold = np.ones(count) / count, np.zeros(count), np.zeros(count)
  moved, variation, expected, rates = np.zeros(count), 1.0, [], []
  for target in targets:
    x = weights @ points
    expected.append(x)
    g = x - target
    loss = points @ g + 2 * smoothness * moved
    lost, variation = lost + loss, variation + np.max(np.abs(loss - foretold)) ** 2
    lagging = np.array([on_ball(z - eta * g) for z, eta in zip(lagging, pool, strict=True)])
    new = np.array([on_ball(z - eta * g) for z, eta in zip(lagging, pool, strict=True)])
    moved, points = np.sum((new - points) ** 2, axis=1), new
    foretold = points @ g + 2 * smoothness * moved
    rates.append(min(cap, variation**-0.5))
    weights = np.exp(-rates[-1] * (lost + foretold))
    weights /= weights.sum()
  assert cap > rates[-1] and count > 3
  optimizer = optimistic_ensemble(
    diameter=diameter,
    bound=bound,
    smoothness=smoothness,
    steps=ROUNDS,
    projection=l2_ball(RADIUS),
  )
  close(played(optimizer, targets), np.array(expected))


def costs():
  return np.random.default_rng(2).normal(size=(ROUNDS, 2, SIZE))


def against(optimizer, slopes, start):
  stream = online.linear(jnp.asarray(slopes))
  return jax.jit(lambda: online.play(optimizer, stream, jnp.asarray(start)))().decisions


def rows_of(weights):
  return weights / weights.sum(axis=-1, keepdims=True)


def test_mirror_descent_on_the_simplex_is_hedge():
  slopes, etas = costs(), 1 / np.sqrt(1 + np.arange(ROUNDS))
  start = np.random.default_rng(3).dirichlet(np.ones(SIZE), size=2)
  before = np.cumsum(etas[:, None, None] * slopes, axis=0) - etas[:, None, None] * slopes
  steps = jnp.asarray(etas)
  optimizer = mirror_descent(lambda count: steps[count], entropy())
  close(against(optimizer, slopes, start), rows_of(start * np.exp(-before)))


def test_mirror_descent_on_a_ball_projects_every_step(targets):
  x, expected = START, []
  for t, target in enumerate(targets):
    expected.append(x)
    x = on_ball(x - 0.5 / (1 + t) ** 0.5 * (x - target))
  optimizer = mirror_descent(lambda t: 0.5 / (1 + t) ** 0.5, euclidean(l2_ball(RADIUS)))
  close(played(optimizer, targets), np.array(expected))


def test_mirror_descent_in_a_p_norm_adds_gradients_to_the_link_of_the_parameters(targets):
  p = 1.3
  q = p / (p - 1)

  def link(x, power):
    size = np.sum(np.abs(x) ** power) ** (1 / power)
    return np.sign(x) * np.abs(x) ** (power - 1) / size ** (power - 2)

  x, expected = START, []
  for target in targets:
    expected.append(x)
    x = link(link(x, p) - 0.2 * (x - target), q)
    x = x * min(1, 1.5 / np.sum(np.abs(x) ** p) ** (1 / p))
  close(played(mirror_descent(0.2, p_norm(p, radius=1.5)), targets), np.array(expected))


def test_mirror_descent_in_a_matrix_norm_preconditions(targets):
  matrix = np.array([[2.0, 0.5, 0.0], [0.5, 1.0, 0.3], [0.0, 0.3, 3.0]])
  x, expected = START, []
  for target in targets:
    expected.append(x)
    x = x - 0.4 * np.linalg.inv(matrix) @ (x - target)
  close(played(mirror_descent(0.4, mahalanobis(matrix)), targets), np.array(expected))


def test_dual_averaging_enters_the_domain_from_the_sum_of_all_gradients(targets):
  x, summed, expected = START, 0, []
  for t, target in enumerate(targets):
    expected.append(x)
    summed = summed + x - target
    x = np.clip(START - 0.5 / (1 + t) ** 0.5 * summed, -0.6, 0.9)
  lazy = dual_averaging(lambda t: 0.5 / (1 + t) ** 0.5, euclidean(box(-0.6, 0.9)))
  greedy = mirror_descent(lambda t: 0.5 / (1 + t) ** 0.5, euclidean(box(-0.6, 0.9)))
  close(played(lazy, targets), np.array(expected))
  assert np.max(np.abs(played(greedy, targets) - np.array(expected))) > 0.1


def test_dual_averaging_on_the_simplex_counts_all_losses_the_same():
  slopes, etas = costs(), 1 / np.sqrt(1 + np.arange(ROUNDS))
  start = np.random.default_rng(3).dirichlet(np.ones(SIZE), size=2)
  summed = np.cumsum(slopes, axis=0)
  expected = rows_of(start * np.exp(-etas[:, None, None] * summed))[:-1]
  steps = jnp.asarray(etas)
  optimizer = dual_averaging(lambda count: steps[count], entropy())
  close(against(optimizer, slopes, start)[1:], expected)


def game(z):
  """min over x, max over y of x y, as a loss whose gradient is (y, -x)."""
  return z[0] * jax.lax.stop_gradient(z[1]) - jax.lax.stop_gradient(z[0]) * z[1]


def run(optimizer, loss, start, rounds):
  """Decisions and the last state of steps on one loss."""

  def step(carry, _):
    params, state = carry
    updates, state = optimizer.update(jax.grad(loss)(params), state, params, value_fn=loss)
    return (optax.apply_updates(params, updates), state), params

  def steps(start):
    return jax.lax.scan(step, (start, optimizer.init(start)), length=rounds)

  (params, state), decisions = jax.jit(steps)(start)
  return decisions, params, state


def test_extragradient_spirals_into_the_solution_of_a_bilinear_game():
  # with z = x + i y, F = -i z: y_t = (1 + i eta) z, z' = z + i eta y_t
  eta, rounds = 0.4, 40
  factor = 1 - eta**2 + 1j * eta
  z = (0.8 + 0.6j) * factor ** np.arange(rounds)
  decisions, last, state = run(extragradient(eta), game, jnp.array([0.8, 0.6]), rounds)
  close(decisions, np.stack([z.real, z.imag], axis=1))
  np.testing.assert_allclose(abs(factor), np.sqrt(1 - eta**2 + eta**4))
  answer = np.mean((1 + 1j * eta) * z)
  np.testing.assert_allclose(eval_params(state, last), [answer.real, answer.imag], rtol=1e-10)
  apart, _, _ = run(mirror_descent(eta), game, jnp.array([0.8, 0.6]), rounds)
  assert np.linalg.norm(decisions[-1]) < 0.1 < 10 < np.linalg.norm(apart[-1])


def test_extragradient_on_simplexes_is_mirror_prox_and_closes_the_gap_of_a_matrix_game():
  matrix = np.random.default_rng(4).normal(size=(3, 4))
  etas = 0.6 / (1 + np.arange(60)) ** 0.3
  rates = jnp.asarray(etas)

  def loss(z):
    x, y = z
    payoff = jnp.asarray(matrix)
    return x @ payoff @ jax.lax.stop_gradient(y) - jax.lax.stop_gradient(x) @ payoff @ y

  x, y = np.ones(3) / 3, np.ones(4) / 4
  expected, trials = [], []
  for eta in etas:
    expected.append(x)
    trial = rows_of(x * np.exp(-eta * matrix @ y)), rows_of(y * np.exp(eta * matrix.T @ x))
    trials.append(np.concatenate(trial))
    x, y = (
      rows_of(x * np.exp(-eta * matrix @ trial[1])),
      rows_of(y * np.exp(eta * matrix.T @ trial[0])),
    )
  optimizer = extragradient(lambda count: rates[count], entropy())
  start = (jnp.ones(3) / 3, jnp.ones(4) / 4)
  decisions, last, state = run(optimizer, loss, start, len(etas))
  close(decisions[0], np.array(expected))
  answer = np.concatenate(eval_params(state, last))
  np.testing.assert_allclose(answer, np.average(trials, axis=0, weights=etas), rtol=1e-9)
  gap = np.max(matrix.T @ answer[:3]) - np.min(matrix @ answer[3:])
  assert 0 <= gap < (np.log(3) + np.log(4)) / etas.sum()


def test_extragradient_answers_with_its_parameters_where_no_average_is_kept():
  _, last, state = run(extragradient(0.4, average=False), game, jnp.array([0.8, 0.6]), 3)
  np.testing.assert_array_equal(eval_params(state, last), last)
  assert state.average is None


def parabola(x):
  return 0.5 * jnp.sum(jnp.array([1.0, 2.0, 4.0]) * (x - jnp.array([1.0, -0.5, 0.2])) ** 2)


@pytest.mark.parametrize("short", [False, True])
def test_frank_wolfe_moves_to_vertices_and_its_gap_bounds_the_distance_to_the_minimum(short):
  scales, goal = np.array([1.0, 2.0, 4.0]), np.array([1.0, -0.5, 0.2])
  x, expected, gaps = np.array([0.1, 0.2, -0.3]), [], []
  for t in range(60):
    expected.append(x)
    g = scales * (x - goal)
    vertex = np.zeros(3)
    vertex[np.argmax(np.abs(g))] = -np.sign(g[np.argmax(np.abs(g))])
    gaps.append(g @ (x - vertex))
    length = gaps[-1] / (4 * np.sum((vertex - x) ** 2))
    x = x + (min(1, length) if short else 2 / (t + 2)) * (vertex - x)
  optimizer = frank_wolfe(domain=l1_ball(1.0), smoothness=4.0 if short else None)
  decisions, _, state = run(optimizer, parabola, jnp.array([0.1, 0.2, -0.3]), 60)
  close(decisions, np.array(expected))
  np.testing.assert_allclose(state.metrics["gap"], gaps[-1], rtol=1e-6)

  least = scipy.optimize.minimize(
    lambda parts: float(parabola(parts[:3] - parts[3:])),
    np.zeros(6),
    bounds=[(0, 1)] * 6,
    constraints={"type": "ineq", "fun": lambda parts: 1 - parts.sum()},
    method="SLSQP",
    options={"ftol": 1e-14},
  ).fun
  above = np.array([float(parabola(x)) for x in decisions]) - least
  assert np.all(above <= np.array(gaps) + 1e-6)
  assert np.all(above[1:] <= 2 * 4 * 2**2 / (np.arange(1, 60) + 2))


def test_frank_wolfe_on_the_simplex_is_sparse_after_few_steps():
  goal = jnp.asarray(np.random.default_rng(0).dirichlet(np.ones(50)))
  loss = lambda x: jnp.sum((x - goal) ** 2)  # noqa: E731
  decisions, _, _ = run(frank_wolfe(domain=simplex()), loss, jnp.ones(50) / 50, 12)
  assert [np.count_nonzero(x) for x in decisions[1:4]] == [1, 2, 3]
  np.testing.assert_allclose(decisions.sum(axis=1), 1)
