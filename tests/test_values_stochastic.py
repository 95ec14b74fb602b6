"""Values of stochastic optimizers against official code, the papers' equations and solutions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrl import spec
from jaxrl.oracle import Oracle
from optimizers.saga import saga
from optimizers.smb import smb
from optimizers.svrg import svrg
from tests import values
from tests.optimizer_properties import count_evaluations
from tests.properties import quick_jit


def play(optimizer, loss_at, start, rounds, *, counter=None):
  """Parameters after each round; `loss_at(params, round)` gives the Oracle of a round's loss."""

  @quick_jit
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
RNG = np.random.default_rng(0)
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

    @quick_jit
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
    run = quick_jit(lambda carry: jax.lax.scan(step, carry, (single, is_pass)))
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
