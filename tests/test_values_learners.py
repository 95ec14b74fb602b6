"""Values of optimistic, parameter-free and converted learners: NumPy and closed forms."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrl import games
from optimizers import og_plus as og
from optimizers import online_to_nonconvex as o2nc
from optimizers import u_dog as dog
from optimizers.og_plus import adaptive_og_plus, adaptive_opt_da_plus, og_plus, opt_da_plus
from optimizers.online_learners import optimistic_ogd, projected_ogd, scale_free_ogd
from optimizers.online_to_nonconvex import online_to_nonconvex
from optimizers.opt_amsgrad import opt_amsgrad
from optimizers.u_dog import u_dog, unixgrad

STEPS, START = 30, np.array([1.0, -2.0, 0.5])
CURVATURE = np.array([[3.0, 1.0, 0.0], [1.0, 2.0, 0.5], [0.0, 0.5, 0.7]])
GOAL = np.array([0.4, 1.0, -1.5])


def slopes(seed=0):
  """Gradients [STEPS, 3] that drift."""
  rng = np.random.default_rng(seed)
  return np.cumsum(rng.normal(size=(STEPS, 3)), axis=0) / 3 + rng.normal(size=3)


def close(actual, expected, tolerance=1e-9):
  np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)


def path(optimizer, gradient_at, start=START, answer=None):
  """The parameters after each step in float64, or the answers."""

  @jax.jit
  def step(params, state, count):
    updates, state = optimizer.update(gradient_at(params, count), state, params)
    return optax.apply_updates(params, updates), state

  with jax.enable_x64(True):
    params = jnp.asarray(start)
    state, seen = optimizer.init(params), []
    for count in range(STEPS):
      params, state = step(params, state, count)
      seen.append(params if answer is None else answer(state, params))
    return np.array(seen)


def given(gradients):
  with jax.enable_x64(True):
    gradients = jnp.asarray(gradients)
  return lambda params, count: gradients[count]


# opt_amsgrad


def extrapolated(y, reg, combine, normalise):
  """The paper's box on the gradients y [r + 1, d]."""
  u = np.diff(y, axis=0).T
  gram = u.T @ u / (np.linalg.norm(u.T @ u, 2) if normalise else 1)
  z = np.linalg.solve(gram + reg * np.eye(len(gram)), np.ones(len(gram)))
  return z / z.sum() @ (y[1:] if combine == "recent" else y[:-1])


@pytest.mark.parametrize(
  ("predictor", "combine", "normalise", "lookback"),
  [
    ("last", "recent", True, True),
    ("last", "recent", True, False),
    ("rmpe", "recent", True, True),
    ("rmpe", "old", False, True),
  ],
)
def test_opt_amsgrad_is_the_algorithm_of_the_paper(predictor, combine, normalise, lookback):
  rate, b1, b2, eps, r, reg = 0.05, 0.8, 0.95, 1e-3, 4, 1e-2
  g = slopes()
  half, theta, v, vhat, expected = START, np.zeros(3), eps * np.ones(3), eps * np.ones(3), []
  for t in range(STEPS):
    before, theta = theta, b1 * theta + (1 - b1) * g[t]
    v = b2 * v + (1 - b2) * g[t] ** 2
    vhat = np.maximum(vhat, v)
    half = half - rate * theta / np.sqrt(vhat)
    m = g[t]
    if predictor == "rmpe" and t >= r:
      m = extrapolated(g[t - r : t + 1], reg, combine, normalise)
    h = b1 * (before if lookback else theta) + (1 - b1) * m
    expected.append(half - rate * h / np.sqrt(vhat))
  optimizer = opt_amsgrad(
    rate, b1=b1, b2=b2, eps=eps, predictor=predictor, r=r, reg=reg,
    combine=combine, normalise=normalise, lookback_momentum=lookback,
  )  # fmt: skip
  close(path(optimizer, given(g)), expected)


@pytest.mark.parametrize(
  ("combine", "normalise", "expected"),
  [
    ("recent", False, [0.58409091, -1.38863636]),
    ("old", False, [0.93636364, -1.92045455]),
    ("recent", True, [0.58416982, -1.38918872]),
  ],
)
def test_opt_amsgrad_extrapolates_three_gradients_as_by_hand(combine, normalise, expected):
  optimizer = opt_amsgrad(
    1.0, b1=0, b2=1, eps=1, predictor="rmpe", r=2, combine=combine, normalise=normalise
  )
  w = jnp.zeros(2)
  state = optimizer.init(w)
  step = jax.jit(optimizer.update)
  for gradient in ([1.0, -2.0], [0.6, -1.5], [0.5, -0.8]):
    updates, state = step(jnp.array(gradient), state, w)
  # The step is -(theta + m) from where the steps without guesses led before.
  guess = -(updates + w) + state.lagging
  close(guess, expected, 1e-5)


def test_opt_amsgrad_guesses_the_limit_of_a_linear_recursion():
  turn = np.array([[0.6, 0.5], [-0.4, 0.7]])
  g = [np.linalg.matrix_power(turn, t) @ [1.0, 2.0] for t in range(STEPS)]
  optimizer = opt_amsgrad(0.1, b1=0, b2=1, eps=1, predictor="rmpe", r=3, reg=1e-13)
  seen = path(optimizer, given(g), np.zeros(2))[3:8]
  close(seen, -0.1 * np.cumsum(g, axis=0)[3:8], 1e-7)  # m = 0, the fixed point


# og_plus, opt_da_plus and their adaptive forms


def rates(c, shift, power):
  return (
    lambda count: c / (count + shift) ** power,
    lambda t: c / (t + shift) ** power,
  )


@pytest.mark.parametrize(("method", "averaging"), [(og_plus, False), (opt_da_plus, True)])
@pytest.mark.parametrize("which", ["played", "base"])
def test_og_plus_and_opt_da_plus_are_their_recursions(method, averaging, which):
  (eta, eta_at), (gamma, gamma_at) = rates(0.2, 2.0, 0.5), rates(0.4, 2.0, 0.25)
  g, base, expected = slopes(), START, []
  for t in range(STEPS):
    base = START - eta_at(t) * g[: t + 1].sum(axis=0) if averaging else base - eta_at(t) * g[t]
    expected.append(base - gamma_at(t) * g[t] if which == "played" else base)
  answer = og.eval_params if which == "base" else None
  close(path(method(eta, gamma), given(g), answer=answer), expected)


def test_opt_da_plus_forgets_no_gradient_where_og_plus_does():
  g, eta = np.ones((STEPS, 1)), lambda count: 1 / (1.0 + count)
  close(path(opt_da_plus(eta, 0.0), given(g), np.zeros(1))[-1], -1)  # -30 / 30
  close(path(og_plus(eta, 0.0), given(g), np.zeros(1))[-1], -sum(1 / np.arange(1, STEPS + 1)))


@pytest.mark.parametrize(
  ("method", "averaging"), [(adaptive_og_plus, False), (adaptive_opt_da_plus, True)]
)
def test_adaptive_og_plus_makes_rates_of_the_past_alone(method, averaging):
  g, q, base, expected = slopes(), 0.15, [START], []
  for t in range(1, STEPS + 1):  # round t, whose gradient is g[t - 1]
    squares = np.sum(g[: t - 1] ** 2)
    moves = sum(np.sum((base[s] - base[s - 1]) ** 2) for s in range(1, t))
    eta, gamma = (1 + squares + moves) ** -0.5, (1 + squares) ** (q - 0.5)
    base.append(START - eta * g[:t].sum(axis=0) if averaging else base[-1] - eta * g[t - 1])
    expected.append(base[-1] - gamma * g[t - 1])
  close(path(method(q=q), given(g)), expected)


@pytest.mark.parametrize(
  ("method", "after"), [(adaptive_og_plus, 1.34e-5), (adaptive_opt_da_plus, 1.06e-5)]
)
def test_adaptive_opt_da_plus_and_its_sibling_solve_a_product_as_another_program_did(method, after):
  product = games.gradients([lambda x, y: x * y, lambda x, y: -x * y])
  with jax.enable_x64(True):
    game = games.play(product, 2 * [method()], [1.0, 1.0], 200, jax.random.key(0))
  np.testing.assert_allclose(np.hypot(*game.answers)[-1], after, rtol=5e-3)


# u_dog and unixgrad


def value(x):
  """A parabola with a bend, of which the gradient is `slope`."""
  d = x - jnp.asarray(GOAL, x.dtype)
  return d @ jnp.asarray(CURVATURE, x.dtype) @ d / 2 + jnp.sum(jnp.log(jnp.cosh(d)))


def slope(x):
  return CURVATURE @ (x - GOAL) + np.tanh(x - GOAL)


def in_ball(x, radius):
  d = x - START
  return START + d * min(1, radius / max(np.linalg.norm(d), 1e-300))


def weighted(weights, points):
  return np.tensordot(weights, points, 1) / np.sum(weights)


def u_dog_by_hand(c, reps, eps, radius):
  """The paper's loop with its sums written out: the points u and z in turn, and the answer."""
  far, ys, xs, ms, gs, alphas, omegas, seen = [], [START], [], [], [], [], [], []
  far.append(reps * (1 + np.linalg.norm(START)))
  for t in range(STEPS // 2 + 1):
    omegas.append(sum(far))
    alphas.append(omegas[t] / far[t])
    seen.append(weighted(omegas, [*xs, ys[t]]))
    ms.append(slope(seen[-1]))
    q = [alphas[k] ** 2 * np.sum((gs[k] - ms[k]) ** 2) for k in range(t)]
    G = eps + np.sum(ms[0] ** 2) + sum(q)
    xs.append(in_ball(ys[t] - c * alphas[t] * far[t] * ms[t] / np.sqrt(G), radius))
    seen.append(weighted(omegas, xs))
    gs.append(slope(seen[-1]))
    G = G + alphas[t] ** 2 * np.sum((gs[t] - ms[t]) ** 2)
    ys.append(in_ball(ys[t] - c * alphas[t] * far[t] * gs[t] / np.sqrt(G), radius))
    far.append(max(far[t], *(np.linalg.norm(p - START) for p in (xs[t], ys[t + 1]))))
  return np.array(seen[1:-1]), weighted(omegas[:-1], xs[:-1])


def downhill(x, count):
  return jax.grad(value)(x)


@pytest.mark.parametrize(("c", "radius"), [(1.0, 1e9), (0.7, 2.0)])
def test_u_dog_is_the_loop_with_its_sums_written_out(c, radius):
  expected, answer = u_dog_by_hand(c, 0.1, 1e-3, radius)
  assert np.linalg.norm(answer - START) > 1  # it has got somewhere
  method = u_dog(c, reps_rel=0.1, eps=1e-3, radius=radius)
  close(path(method, downhill), expected)
  close(path(method, downhill, answer=dog.eval_params)[-1], answer)


def test_u_dog_does_not_see_the_scale_of_the_loss():
  runs = []
  for scale in (1.0, 1e12):
    loss = functools.partial(lambda scale, x: scale * value(x), scale)
    method = u_dog(reps_rel=1e-3, eps=0)
    runs.append(path(method, lambda x, _, loss=loss: jax.grad(loss)(x)))
  close(runs[0], runs[1])


def test_u_dog_is_orders_of_magnitude_ahead_of_descent_on_an_ill_conditioned_parabola():
  scales = jnp.logspace(0, -3, 20)
  loss = lambda x: jnp.sum(scales * x**2) / 2  # noqa: E731
  start = jnp.asarray(np.random.default_rng(0).normal(size=20), jnp.float32)

  @jax.jit
  def run(start):
    method = u_dog()

    def step(carry, _):
      x, state = carry
      updates, state = method.update(jax.grad(loss)(x), state, x)
      return (x + updates, state), None

    (x, state), _ = jax.lax.scan(step, (start, method.init(start)), length=600)
    return loss(dog.eval_params(state, x))

  descent = jnp.sum(scales * ((1 - scales) ** 600 * start) ** 2) / 2  # by 1 / L, as many gradients
  assert run(start) < descent / 20


def test_u_dog_takes_smaller_steps_where_the_gradients_of_a_pair_differ():
  method, noise = u_dog(reps_rel=0.1), jnp.array([5.0, -5.0, 5.0])
  moves = []
  for size in (0.0, 1.0):
    seen = path(method, lambda x, count, size=size: jax.grad(value)(x) + size * (count % 2) * noise)
    moves.append(np.linalg.norm(seen[2] - seen[1]))
  assert moves[1] < moves[0]


def test_unixgrad_is_the_algorithm_of_the_paper():
  diameter, c = 4.0, 0.8
  ys, xs, ms, gs, seen = [START], [], [], [], []
  for t in range(1, STEPS // 2 + 2):
    alphas = np.arange(1, t + 1)
    seen.append(weighted(alphas, [*xs, ys[-1]]))
    ms.append(slope(seen[-1]))
    spread = sum(s**2 * np.sum((gs[s - 1] - ms[s - 1]) ** 2) for s in range(1, t))
    eta = 2 * c * diameter / np.sqrt(1 + spread)
    xs.append(in_ball(ys[-1] - t * eta * ms[-1], diameter / 2))
    seen.append(weighted(alphas, xs))
    gs.append(slope(seen[-1]))
    ys.append(in_ball(ys[-1] - t * eta * gs[-1], diameter / 2))
  method = unixgrad(c, diameter=diameter)
  close(path(method, downhill), seen[1:-1])
  answer = path(method, downhill, answer=dog.eval_params)[-1]
  close(answer, weighted(np.arange(1, STEPS // 2 + 1), xs[:-1]))


# The learners


def into(w, radius):
  return w * min(1, radius / max(np.linalg.norm(w), 1e-300))


def test_projected_ogd_stays_in_its_ball():
  g, w, expected = slopes(), START, []
  for t in range(STEPS):
    w = into(w - 0.3 / (1 + t) ** 0.5 * g[t], 1.5)
    expected.append(w)
  rate = lambda count: 0.3 / (1.0 + count) ** 0.5  # noqa: E731
  close(path(projected_ogd(rate, radius=1.5), given(g)), expected)


def test_optimistic_ogd_projects_both_of_its_points():
  g, secondary, expected = slopes(), into(START, 1.5), []
  for t in range(STEPS):
    secondary = into(secondary - 0.3 * g[t], 1.5)
    expected.append(into(secondary - 0.3 * g[t], 1.5))
  close(path(optimistic_ogd(0.3, radius=1.5), given(g)), expected)


def test_scale_free_ogd_divides_by_all_gradients():
  g, w, expected = slopes(), START, []
  for t in range(STEPS):
    w = into(w - np.sqrt(2) * 0.5 * 1.5 / np.sqrt(np.sum(g[: t + 1] ** 2)) * g[t], 1.5)
    expected.append(w)
  method = scale_free_ogd(0.5, radius=1.5)
  close(path(method, given(g)), expected)
  close(path(method, given(1e12 * g)), expected)


# online_to_nonconvex


def drawn(draw):
  """The scalings of a run with seed 0."""
  keys = [jax.random.fold_in(jax.random.key(0), count) for count in range(STEPS)]
  return np.array([draw(key, dtype=jnp.float32) for key in keys], np.float64)


@pytest.mark.parametrize("scaling", ["uniform", "exponential", "none"])
def test_online_to_nonconvex_takes_steps_of_its_learner(scaling):
  s = {
    "uniform": drawn(jax.random.uniform),
    "exponential": drawn(jax.random.exponential),
    "none": np.ones(STEPS),
  }[scaling]
  g, x, delta, expected = slopes(), START, np.zeros(3), []
  for n in range(STEPS):
    delta = into(delta - 0.1 * g[n], 0.25)
    expected.append(x + s[n] * delta)
    x = x + delta if scaling == "uniform" else expected[-1]
  method = online_to_nonconvex(projected_ogd(0.1, radius=0.25), scaling=scaling, epoch=7)
  seen = path(method, given(g))
  close(seen, expected)
  means = path(method, given(g), answer=o2nc.eval_params)
  played = np.array([START, *expected])
  for n in range(STEPS):
    close(means[n], played[n - n % 7 : n + 1].mean(axis=0))


def test_online_to_nonconvex_knows_in_expectation_what_a_step_changes():
  # The mean over s of <grad f(x + s d), d> is f(x + d) - f(x), for a loss that is not smooth.
  loss = lambda w: jnp.sum(jnp.abs(w)) + jnp.sin(3 * w[0])  # noqa: E731
  method = online_to_nonconvex(projected_ogd(1.0, radius=2.0))
  first = jnp.array([-0.8, 1.1])

  def change(seed):
    w = jnp.array([-0.3, 0.4])
    state = method.init(w)._replace(seed=seed)
    updates, state = method.update(-first, state, w)
    return jax.grad(loss)(w + updates) @ state.step, loss(state.x) - loss(w)

  found, wanted = jax.jit(jax.vmap(change))(jnp.arange(4000))
  noise = 4 * jnp.std(found) / jnp.sqrt(4000)
  assert abs(jnp.mean(found) - wanted[0]) < noise < 0.2


def test_online_to_nonconvex_makes_the_mean_gradient_small_where_single_ones_are_not():
  loss = lambda w: jnp.abs(w[0]) + 0.1 * w[1] ** 2  # noqa: E731
  epoch = 400
  method = online_to_nonconvex(projected_ogd(1e-3, radius=0.02), epoch=epoch)

  def step(carry, key):
    w, state = carry
    gradient = jax.grad(loss)(w)
    updates, state = method.update(gradient + 0.1 * jax.random.normal(key, (2,)), state, w)
    return (w + updates, state), gradient

  w = jnp.array([1.0, 1.0])
  keys = jax.random.split(jax.random.key(0), 10 * epoch)
  run = jax.jit(lambda w: jax.lax.scan(step, (w, method.init(w)), keys))
  (w, state), gradients = run(w)
  last = gradients[-epoch:]
  assert jnp.min(jnp.linalg.norm(last, axis=1)) > 0.99
  assert jnp.linalg.norm(jnp.mean(last, axis=0)) < 0.1
  assert jnp.linalg.norm(o2nc.eval_params(state, w)) < 0.1
