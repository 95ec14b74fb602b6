"""Values of stochastic optimizers against official code, the papers' equations and solutions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.optimize

from jaxrl.oracle import Oracle
from optimizers.proxyprox import proxyprox
from optimizers.saga import saga
from optimizers.smb import smb
from optimizers.solvers._solver import FiniteSum, Solver
from optimizers.solvers.halpern_infeasibility import halpern_infeasibility
from optimizers.solvers.vr_halpern import vr_halpern
from optimizers.sso_target_surrogate import sso_target_surrogate
from optimizers.stochastic_model_based import stochastic_model_based
from optimizers.svrg import svrg
from tests import problem, values
from tests.optimizer_properties import count_evaluations


def play(optimizer, loss_at, start, rounds):
  """Parameters after each round; `loss_at(params, round)` gives the Oracle of a round's loss."""

  @jax.jit
  def step(params, state, data):
    value_fn = loss_at(params, data)
    value, grad = jax.value_and_grad(value_fn)(params)
    extras = {"value": value, "grad": grad, "value_fn": value_fn}
    updates, state = optimizer.update(grad, state, params, **extras)
    return optax.apply_updates(params, updates), state

  params, state = start, optimizer.init(start)
  path, states = [], []
  for data in rounds:
    params, state = step(params, state, data)
    path.append(params)
    states.append(state)
  return path, states


def stack(trees):
  return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)


# svrg and saga, on least squares over single rows


ROWS, SIZE = 6, 3
RNG = np.random.default_rng(5)
INPUTS = RNG.normal(size=(ROWS, SIZE)).round(2)
TARGETS = RNG.normal(size=ROWS).round(2)
START = np.ones(SIZE)
RATE = 1 / (3 * np.max(np.sum(INPUTS**2, axis=1)))


def row_gradient(w, i):
  """Of the loss (a_i w - b_i)^2 / 2 of one row, in NumPy."""
  return INPUTS[i] * (INPUTS[i] @ w - TARGETS[i])


def full_gradient(w):
  return np.mean([row_gradient(w, i) for i in range(ROWS)], axis=0)


def rows_oracle(params, index):
  """The mean loss over the rows `index [B]`."""

  def losses(params):
    return (jnp.asarray(INPUTS)[index] @ params - jnp.asarray(TARGETS)[index]) ** 2 / 2

  mean = lambda params: jnp.mean(losses(params))  # noqa: E731
  return Oracle(mean, params, losses=losses, batch={"index": index})


def test_svrg_is_algorithm_5_1_with_passes_over_batches():
  every, cycles = 4, 4
  rng = np.random.default_rng(1)
  w, expected, rounds = START.copy(), [], []
  for _ in range(cycles):
    anchor, mean = w, full_gradient(w)
    for pair in rng.permutation(ROWS).reshape(-1, 2):  # the pass: the parameters wait
      rounds.append(pair)
      expected.append(w)
    for i in rng.integers(ROWS, size=every):
      rounds.append([i, i])
      w = w - RATE * (row_gradient(w, i) - row_gradient(anchor, i) + mean)
      expected.append(w)
  optimizer = optax.chain(svrg(batches=3, every=every), optax.sgd(RATE))
  with jax.enable_x64(True):
    path, _ = play(optimizer, rows_oracle, jnp.asarray(START), jnp.asarray(rounds))
  assert len(path) == 28
  np.testing.assert_allclose(path, expected, rtol=1e-10)


def test_svrg_without_pauses_has_an_anchor_from_before_the_pass():
  rng = np.random.default_rng(2)
  w, expected, rounds = START.copy(), [], []
  for _ in range(3):
    anchor, mean = w, full_gradient(w)
    for i in rng.permutation(ROWS):
      rounds.append([i])
      w = w - RATE * row_gradient(w, i)
      expected.append(w)
    for i in rng.integers(ROWS, size=2):
      rounds.append([i])
      w = w - RATE * (row_gradient(w, i) - row_gradient(anchor, i) + mean)
      expected.append(w)
  optimizer = optax.chain(svrg(batches=ROWS, every=2, pause=False), optax.sgd(RATE))
  with jax.enable_x64(True):
    path, _ = play(optimizer, rows_oracle, jnp.asarray(START), jnp.asarray(rounds))
  np.testing.assert_allclose(path, expected, rtol=1e-10)


def test_svrg_collects_the_exact_gradient_though_momentum_goes_on_moving():
  optimizer = optax.chain(svrg(batches=3, every=2), optax.sgd(RATE, momentum=0.9))
  rounds = jnp.array([[0, 1], [2, 3], [4, 5], [0, 3], [1, 2]] * 3)
  with jax.enable_x64(True):
    path, states = play(optimizer, rows_oracle, jnp.asarray(START), rounds)
    anchor, mean = states[12][0].anchor, states[12][0].gradient  # after the third pass
  assert not np.allclose(path[12], path[10])
  np.testing.assert_allclose(anchor, path[9])
  np.testing.assert_allclose(mean, full_gradient(np.asarray(path[9])), rtol=1e-10)


@pytest.mark.parametrize(("pause", "count"), [(True, 2 * 3), (False, 2 * 5)])
def test_svrg_evaluates_the_anchor_only_where_the_parameters_left_it(pause, count):
  optimizer = optax.chain(svrg(batches=2, every=4, pause=pause), optax.sgd(RATE))
  with count_evaluations(lambda params, index: rows_oracle(params, index)(params)) as (
    counted,
    evaluations,
  ):

    @jax.jit
    def step(params, state, index):
      grad = jax.grad(rows_oracle(params, index))(params)
      updates, state = optimizer.update(
        grad, state, params, value_fn=lambda params: counted(params, index)
      )
      return optax.apply_updates(params, updates), state

    params = jnp.asarray(START, jnp.float32)
    state = optimizer.init(params)
    for i in range(12):
      params, state = step(params, state, jnp.array([i % ROWS]))
    jax.block_until_ready(params)
    jax.effects_barrier()
  assert len(evaluations) == count


def test_saga_is_algorithm_5_2():
  rng = np.random.default_rng(3)
  rounds = rng.integers(ROWS, size=(40, 1))
  w, table, expected = START.copy(), np.zeros((ROWS, SIZE)), []
  for (i,) in rounds:
    g = row_gradient(w, i)
    w = w - RATE * (g - table[i] + np.mean(table, axis=0))
    table[i] = g
    expected.append(w)
  with jax.enable_x64(True):
    path, states = play(
      optax.chain(saga(ROWS), optax.sgd(RATE)),
      rows_oracle,
      jnp.asarray(START),
      jnp.asarray(rounds),
    )
    np.testing.assert_allclose(states[-1][0].table, table, rtol=1e-9)
  np.testing.assert_allclose(path, expected, rtol=1e-9)


def test_saga_on_batches_averages_the_corrections():
  table, w = np.zeros((ROWS, SIZE)), START
  expected = []
  batches = np.array([[0, 3], [5, 1], [3, 5], [2, 4]])
  for batch in batches:
    g = np.array([row_gradient(w, i) for i in batch])
    w = w - RATE * (np.mean(g - table[batch], axis=0) + np.mean(table, axis=0))
    table[batch] = g
    expected.append(w)
  with jax.enable_x64(True):
    path, _ = play(
      optax.chain(saga(ROWS), optax.sgd(RATE)),
      rows_oracle,
      jnp.asarray(START),
      jnp.asarray(batches),
    )
  np.testing.assert_allclose(path, expected, rtol=1e-9)


@pytest.mark.parametrize("method", ["svrg", "saga", "sgd"])
def test_variance_reduction_finds_the_least_squares_solution_with_a_constant_rate(method):
  solution = np.linalg.lstsq(INPUTS, TARGETS, rcond=None)[0]
  rng = np.random.default_rng(4)
  element = {"svrg": svrg(1, every=2 * ROWS), "saga": saga(ROWS), "sgd": optax.identity()}[method]
  optimizer = optax.with_extra_args_support(optax.chain(element, optax.sgd(RATE)))
  whole = np.arange(ROWS)

  def step(carry, inputs):
    index, is_pass = inputs
    params, state = carry
    index = jnp.where(is_pass, whole, index) if method == "svrg" else index[:1]
    value_fn = rows_oracle(params, index)
    updates, state = optimizer.update(jax.grad(value_fn)(params), state, params, value_fn=value_fn)
    return (optax.apply_updates(params, updates), state), None

  steps = 150 * (2 * ROWS + 1)
  single = np.repeat(rng.integers(ROWS, size=(steps, 1)), ROWS, axis=1)
  is_pass = np.arange(steps) % (2 * ROWS + 1) == 0
  with jax.enable_x64(True):
    start = jnp.asarray(START)
    run = jax.jit(lambda carry: jax.lax.scan(step, carry, (single, is_pass)))
    (params, _), _ = run((start, optimizer.init(start)))
  distance = np.linalg.norm(np.asarray(params) - solution)
  assert distance < 1e-8 if method != "sgd" else distance > 1e-2


@pytest.mark.parametrize(
  ("losses", "batch", "message"),
  [
    (lambda w: w * jnp.ones(2), {}, "saga needs `index`"),
    (lambda w: w * jnp.ones(3), {"index": jnp.arange(2)}, "losses [2], one an example, got [3]"),
  ],
)
def test_saga_refuses_losses_that_are_not_of_numbered_examples(losses, batch, message):
  w = jnp.array(1.0)
  value_fn = Oracle(lambda w: jnp.mean(losses(w)), w, losses=losses, batch=batch)
  with pytest.raises(ValueError) as error:
    saga(4).update(w, saga(4).init(w), w, value_fn=value_fn)
  assert message in str(error.value)


# smb


def classifier(params, data):
  inputs, labels = data
  hidden = jnp.tanh(inputs @ params["first"] + params["bias"][None])
  losses = optax.softmax_cross_entropy_with_integer_labels(hidden @ params["second"], labels)
  return jnp.mean(losses)


@pytest.mark.parametrize(("wide", "tolerance"), [(True, 1e-9), (False, 2e-3)])
@pytest.mark.parametrize("name", ["smb", "smbi"])
def test_smb_is_the_official_one_for_thirty_steps(name, wide, tolerance):
  golden = values.load("smb")
  settings, expected = golden["settings"], golden[name]
  with jax.enable_x64(wide):
    optimizer = smb(
      settings["lr"],
      settings["eta"],
      settings["c"],
      independent=name == "smbi",
      autoschedule=True,
      gamma=settings["gamma"],
      beta=settings["beta"],
      max_rate=settings["lr_max"],
      steps_per_epoch=golden["epoch"],
    )
    path, states = play(
      optimizer,
      lambda params, data: functools.partial(classifier, data=data),
      jax.tree.map(jnp.asarray, golden["start"]),
      zip(golden["inputs"], golden["labels"], strict=True),
    )
  rates = [state.metrics["learning_rate"] for state in states]
  np.testing.assert_allclose(rates, expected["rates"], rtol=1e-6)
  assert len(set(expected["rates"])) >= 2
  assert 5 < sum(state.metrics["model_step"] for state in states) < 25
  for leaf in golden["start"]:
    np.testing.assert_allclose(
      stack(path)[leaf], [p[leaf] for p in expected["params"]], rtol=tolerance, atol=tolerance
    )


# stochastic_model_based


def composite(outputs, loss_of, params, data):
  """The Oracle of `loss_of(outputs(params, data), data)`."""
  return Oracle(
    lambda params: loss_of(outputs(params, data), data),
    params,
    outputs=lambda params: outputs(params, data),
    loss_of=lambda z: loss_of(z, data),
  )


def quadratic_output(x, data):
  a, b = data
  return (a @ x) ** 2 - b


def linear_output(x, data):
  a, b = data
  return a @ x - b


def mean_absolute(z, _data):
  return jnp.mean(jnp.abs(z))


def half_square(z, _data):
  return jnp.mean(z**2) / 2


def logistic(z, _data):
  return jnp.mean(jnp.logaddexp(0.0, -z))


def prox_linear_of_retrieval(x, a, b, rate):
  """By clipping, in NumPy."""
  value, slope = (a @ x) ** 2 - b, 2 * (a @ x) * a
  return x - rate * np.clip(value / (rate * (slope @ slope)), -1, 1) * slope


def prox_point_of_retrieval(x, a, b, rate):
  """The best of the four points where the loss on the line along `a` may be the smallest."""
  start, width = a @ x, rate * (a @ a)
  points = [np.sqrt(b), -np.sqrt(b), start / (1 + 2 * width), start / (1 - 2 * width)]
  found = min(points, key=lambda u: abs(u**2 - b) + (u - start) ** 2 / (2 * width))
  return x + (found - start) / (a @ a) * a


@pytest.mark.parametrize(
  ("model", "by_hand", "rates"),
  [
    ("prox_linear", prox_linear_of_retrieval, (0.01, 0.3, 100.0)),
    ("prox_point", prox_point_of_retrieval, (0.005, 0.03)),
  ],
)
def test_stochastic_model_based_solves_phase_retrieval_in_closed_form(model, by_hand, rates):
  rng = np.random.default_rng(0)
  inputs, signal = rng.normal(size=(25, 1, 4)), rng.normal(size=4)
  targets = (inputs @ signal) ** 2
  start = signal + 0.5 * rng.normal(size=4)
  loss_at = functools.partial(composite, quadratic_output, mean_absolute)
  for rate in rates:
    x, expected = start, []
    for a, b in zip(inputs, targets, strict=True):
      x = by_hand(x, a[0], b[0], rate)
      expected.append(x)
    with jax.enable_x64(True):
      optimizer = stochastic_model_based(rate, model, linearizations=60)
      data = zip(inputs, targets, strict=True)
      path, _ = play(optimizer, loss_at, jnp.asarray(start), data)
    np.testing.assert_allclose(path, expected, rtol=1e-7)


def test_stochastic_model_based_truncated_stops_where_the_model_is_zero():
  rng = np.random.default_rng(1)
  inputs, targets = rng.normal(size=(25, 3, 4)), rng.normal(size=(25, 3))
  start, rate, lower = rng.normal(size=4), 0.5, 0.02
  x, expected, cut = start, [], 0
  for a, b in zip(inputs, targets, strict=True):
    value, g = np.mean(np.abs(a @ x - b)), np.mean(np.sign(a @ x - b)[:, None] * a, axis=0)
    polyak = max(value - lower, 0) / (g @ g)
    cut += polyak < rate
    x = x - min(rate, polyak) * g
    expected.append(x)
  assert 3 < cut < 22
  with jax.enable_x64(True):
    path, _ = play(
      stochastic_model_based(rate, "truncated", lower=lower),
      functools.partial(composite, linear_output, mean_absolute),
      jnp.asarray(start),
      zip(inputs, targets, strict=True),
    )
  np.testing.assert_allclose(path, expected, rtol=1e-9)


def by_scipy(h, dh, x, a, b, rate):
  """The proximal point of a smooth mean of h(a_i y - b_i)."""
  found = scipy.optimize.minimize(
    lambda y: np.mean(h(a @ y - b)) + np.sum((y - x) ** 2) / (2 * rate),
    x,
    jac=lambda y: a.T @ dh(a @ y - b) / len(b) + (y - x) / rate,
    method="BFGS",
    options={"gtol": 1e-9},
  )
  return found.x


def box(x, a, b, rate):
  """The proximal point of the mean absolute error, by its dual: a quadratic on a box."""
  kernel, residual, size = a @ a.T, a @ x - b, len(b)
  found = scipy.optimize.lsq_linear(
    *(np.linalg.cholesky(kernel).T, np.linalg.solve(np.linalg.cholesky(kernel), residual) / rate),
    bounds=(-1 / size, 1 / size),
    tol=1e-14,
  )
  return x - rate * a.T @ found.x


def least_squares(x, a, b, rate):
  system = a.T @ a / len(b) + np.eye(len(x)) / rate
  return np.linalg.solve(system, a.T @ b / len(b) + x / rate)


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize(
  ("loss_of", "solve"),
  [
    (half_square, least_squares),
    (mean_absolute, box),
    (
      logistic,
      functools.partial(by_scipy, lambda z: np.logaddexp(0, -z), lambda z: -1 / (1 + np.exp(z))),
    ),
  ],
)
def test_stochastic_model_based_finds_proximal_points_of_batches(loss_of, solve, size):
  rng = np.random.default_rng(2)
  inputs, targets = rng.normal(size=(20, size, 5)), rng.normal(size=(20, size))
  x, expected, rate = rng.normal(size=5), [], 0.7
  start = x
  for a, b in zip(inputs, targets, strict=True):
    x = solve(x, a, b, rate)
    expected.append(x)
  with jax.enable_x64(True):
    path, _ = play(
      stochastic_model_based(rate, "prox_linear", sweeps=100),
      functools.partial(composite, linear_output, loss_of),
      jnp.asarray(start),
      zip(inputs, targets, strict=True),
    )
  np.testing.assert_allclose(path, expected, rtol=1e-5, atol=1e-6)


def test_stochastic_model_based_refuses_several_outputs_an_example():
  w = jnp.ones(2)
  value_fn = composite(lambda w, _: w[None] * jnp.ones((3, 1)), mean_absolute, w, None)
  with pytest.raises(ValueError) as error:
    stochastic_model_based(1.0).update(w, None, w, value_fn=value_fn)
  assert "one output an example, got [3, 2]" in str(error.value)


# sso_target_surrogate


def logits_of(params, data):
  return jnp.tanh(data[0] @ params["first"] + params["bias"][None]) @ params["second"]


def mean_cross_entropy(z, data):
  return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(z, data[1]))


@pytest.mark.parametrize(("wide", "tolerance"), [(True, 1e-6), (False, 5e-3)])
def test_sso_target_surrogate_is_the_official_one_for_twenty_updates(wide, tolerance):
  golden = values.load("sso_target_surrogate")
  batch, outputs = golden["inputs"].shape[1], 3

  def rate(count):
    return 1 / (2 * batch * golden["eta"] * jnp.sqrt(1 + count))

  with jax.enable_x64(wide):
    path, _ = play(
      sso_target_surrogate(rate, golden["inner_steps"], initial_step=20 / outputs),
      functools.partial(composite, logits_of, mean_cross_entropy),
      jax.tree.map(jnp.asarray, golden["start"]),
      zip(golden["inputs"], golden["labels"], strict=True),
    )
  for leaf in golden["start"]:
    expected = [params[leaf] for params in golden["params"]]
    np.testing.assert_allclose(stack(path)[leaf], expected, rtol=tolerance, atol=tolerance)


def test_sso_target_surrogate_solves_least_squares_by_one_gradient_of_the_loss():
  solution = np.linalg.lstsq(INPUTS, TARGETS, rcond=None)[0]
  with jax.enable_x64(True):
    (found,), _ = play(
      sso_target_surrogate(1.0, inner_steps=300),
      functools.partial(composite, linear_output, half_square),
      jnp.asarray(START),
      [(INPUTS, TARGETS)],
    )
  np.testing.assert_allclose(found, solution, rtol=1e-4)


# proxyprox


def test_proxyprox_on_quadratics_is_a_step_by_the_proxys_hessian():
  rng = np.random.default_rng(0)
  square = rng.normal(size=(4, 4))
  proxy_hessian = square @ square.T + np.eye(4)
  slopes, eta = rng.normal(size=(20, 4)), 0.5
  errors = [0.3 * (e + e.T) for e in rng.normal(size=(20, 4, 4))]
  x, expected = np.ones(4), []
  for error, slope in zip(errors, slopes, strict=True):
    gradient = (proxy_hessian + error) @ x + slope
    x = x - np.linalg.solve(proxy_hessian + np.eye(4) / eta, gradient)
    expected.append(x)
  with jax.enable_x64(True):
    optimizer = proxyprox(eta, optax.sgd(1.5 / np.linalg.norm(proxy_hessian, 2)), inner_steps=300)

    @jax.jit
    def step(x, state, error, slope):
      gradient = (proxy_hessian + error) @ x + slope
      return optimizer.update(
        gradient, state, x, proxy_fn=lambda y: y @ jnp.asarray(proxy_hessian) @ y / 2
      )

    x, path = jnp.ones(4), []
    state = optimizer.init(x)
    for error, slope in zip(errors, slopes, strict=True):
      updates, state = step(x, state, error, slope)
      x = x + updates
      path.append(x)
  np.testing.assert_allclose(path, expected, rtol=1e-6)


def test_proxyprox_without_a_proxy_is_gradient_descent_by_its_own_rate():
  optimizer = proxyprox(0.3, optax.sgd(0.1), inner_steps=100)
  w = jnp.array([1.0, -2.0])
  updates, _ = optimizer.update(w, optimizer.init(w), w, proxy_fn=lambda w: 0.0 * jnp.sum(w))
  np.testing.assert_allclose(updates, -0.3 * w, rtol=1e-5)


def test_proxyprox_takes_the_proxy_from_the_batch():
  data = problem.data(jnp.ones(3))
  w = jnp.array([1.0, -2.0, 0.5])
  value_fn = problem.oracle(w, data)
  optimizer = proxyprox(0.3, optax.sgd(0.05), inner_steps=5, slices=2)
  gradient = jax.grad(value_fn)(w)
  update = jax.jit(lambda w: optimizer.update(gradient, optimizer.init(w), w, value_fn=value_fn))
  found, _ = update(w)
  half = jax.tree.map(lambda leaf: leaf[:4], data._replace(scale=jnp.ones(4)))
  first = jax.jit(jax.grad(problem.oracle(w, half._replace(scale=data.scale))))
  y = w
  for _ in range(5):
    y = y - 0.05 * (first(y) + gradient - first(w) + (y - w) / 0.3)
  np.testing.assert_allclose(w + found, y, rtol=1e-5)


# halpern_infeasibility and vr_halpern


def scanned(solver, start, steps):
  """The states after each step, stacked."""

  def body(state, _):
    state = solver.step(state)
    return state, state

  run = jax.jit(lambda start: jax.lax.scan(body, solver.init(start), length=steps)[1])
  return jax.tree.map(np.asarray, run(start))


@pytest.mark.parametrize("anchor", [True, False])
def test_halpern_infeasibility_is_its_recursion(anchor):
  rng = np.random.default_rng(0)
  turn, shift = np.linalg.qr(rng.normal(size=(4, 4)))[0], rng.normal(size=4)
  start = rng.normal(size=4)
  x, expected, residuals = start, [], []
  for k in range(30):
    image = turn @ x + shift
    residuals.append(x - image)
    x = start / (k + 2) + (k + 1) / (k + 2) * image if anchor else image
    expected.append(x)
  with jax.enable_x64(True):
    solver = halpern_infeasibility(lambda x: jnp.asarray(turn) @ x + shift, anchor=anchor)
    states = scanned(solver, jnp.asarray(start), 30)
  np.testing.assert_allclose(states.params, expected, rtol=1e-6)
  np.testing.assert_allclose(states.displacement, residuals, rtol=1e-5, atol=1e-6)


def test_halpern_infeasibility_of_a_translation_in_closed_form():
  shift, start = np.array([0.5, -2.0]), np.array([3.0, 1.0])
  states = scanned(halpern_infeasibility(lambda x: x - shift), jnp.asarray(start), 40)
  k = np.arange(1, 41)[:, None]
  np.testing.assert_allclose(states.params, start - k / 2 * shift, rtol=1e-5)
  np.testing.assert_allclose(states.displacement, np.tile(shift, (40, 1)), rtol=1e-4)


def test_halpern_infeasibility_keeps_the_bound_of_theorem_8_where_picard_does_not_converge():
  # a rotation in a plane and a translation across it: v is the translation
  quarter, shift = np.array([[0.0, -1.0], [1.0, 0.0]]), np.array([0.0, 0.0, 0.3])

  def operator(x):
    return jnp.concatenate([jnp.asarray(quarter) @ x[:2], x[2:]]) - shift

  start, steps = np.array([2.0, -1.0, 5.0]), 200
  with jax.enable_x64(True):
    found, picard = (
      scanned(halpern_infeasibility(operator, anchor=anchor), jnp.asarray(start), steps)
      for anchor in (True, False)
    )
  distance = np.linalg.norm(start[:2])  # from the nearest point with the residual v
  n = np.arange(1, steps)
  harmonic = np.cumsum(1 / n)
  bound = (np.sqrt(harmonic + 12) + 1) / (n + 1) * distance
  errors = np.linalg.norm(found.displacement - shift, axis=1)
  assert np.all(errors[1:] <= bound)
  assert np.all(np.linalg.norm(picard.displacement - shift, axis=1) > 3)


def random_sums(rng, size, dimension):
  """Affine operators A_i u - b_i, the gradients of convex quadratics, in NumPy."""
  factors = rng.normal(size=(size, dimension, dimension)) / dimension
  return np.einsum("nij,nik->njk", factors, factors), rng.normal(size=(size, dimension))


def affine(matrices, shifts):
  def mean(u, index):
    images = jnp.einsum("nij,j->ni", jnp.asarray(matrices)[index], u)
    return jnp.mean(images - jnp.asarray(shifts)[index], axis=0)

  return FiniteSum(mean, len(shifts))


def test_vr_halpern_is_algorithm_1_on_the_same_draws():
  size, dimension, smoothness, steps = 10, 3, 2.0, 40
  rng = np.random.default_rng(0)
  matrices, shifts = random_sums(rng, size, dimension)
  start = rng.normal(size=dimension)

  def mean(u, index):
    return np.mean([matrices[i] @ u - shifts[i] for i in index], axis=0)

  def draws(k):
    coin, rows = jax.random.split(jax.random.fold_in(jax.random.key(7), k))
    return jax.random.uniform(coin), jax.random.randint(rows, (4,), 0, size)

  coins, chosen = jax.tree.map(np.asarray, jax.jit(jax.vmap(draws))(jnp.arange(steps)))
  u, f = start, mean(start, range(size))
  expected, whole = [], 0
  for k in range(steps):
    old, weight = u, 2 / (k + 4)
    u = weight * start + (1 - weight) * u - f / (4 * smoothness)
    p = 4 / (k + 1 + 5) if k + 1 <= np.sqrt(size) else 4 / (np.sqrt(size) + 5)
    if coins[k] < p:
      f, whole = mean(u, range(size)), whole + 1
    else:
      f = f + mean(u, chosen[k]) - mean(old, chosen[k])
    expected.append(u)
  assert 10 < whole < 30
  with jax.enable_x64(True):
    solver = vr_halpern(affine(matrices, shifts), smoothness)
    seeded = Solver(lambda u: solver.init(u)._replace(seed=jnp.asarray(7, jnp.int32)), solver.step)
    states = scanned(seeded, jnp.asarray(start), steps)
  np.testing.assert_allclose(states.params, expected, rtol=1e-5)
  assert np.sum(states.metrics["evaluated"]) == size * whole + 8 * (steps - whole)


def test_vr_halpern_of_one_component_is_halperns_iteration():
  rng = np.random.default_rng(1)
  ((matrix,), (shift,)) = random_sums(rng, 1, 3)
  start = rng.normal(size=3)
  u, expected = start, []
  for k in range(30):
    u = 2 / (k + 4) * start + (k + 2) / (k + 4) * u - (matrix @ u - shift) / 8
    expected.append(u)
  with jax.enable_x64(True):
    solver = vr_halpern(affine(matrix[None], shift[None]), 2.0)
    states = scanned(solver, jnp.asarray(start), 30)
  np.testing.assert_allclose(states.params, expected, rtol=1e-5)


@pytest.mark.parametrize("kind", ["random sums", "turning"])
def test_vr_halpern_converges_as_one_over_k(kind):
  rng = np.random.default_rng(2)
  if kind == "turning":  # [[1, 2], [-2, 1]] is 1 / 5 cocoercive
    matrices, shifts = np.tile([[1.0, 2.0], [-2.0, 1.0]], (100, 1, 1)), rng.normal(size=(100, 2))
    smoothness = 5.0
  else:
    matrices, shifts = random_sums(rng, 100, 5)
    smoothness = np.max(np.linalg.eigvalsh(matrices))
  matrix, shift = matrices.mean(axis=0), shifts.mean(axis=0)
  start = rng.normal(size=len(shift))
  distance = np.linalg.norm(start - np.linalg.solve(matrix, shift))
  with jax.enable_x64(True):
    states = scanned(vr_halpern(affine(matrices, shifts), smoothness), jnp.asarray(start), 400)
  norms = np.linalg.norm(states.params @ matrix.T - shift, axis=1)
  assert np.max((np.arange(1, 401) + 4) * norms / (smoothness * distance)) <= 8.1
