"""Values of second-order optimizers against official code, dense solves and least squares."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrl import oracle
from jaxrl.oracle import Oracle
from objectives.classification.cross_entropy import cross_entropy
from objectives.regression.squared_error import squared_error
from optimizers.egn import egn
from tests import values

KEY = jax.random.key(0)
NAMES = ("first", "bias", "second")


def network(params, inputs):
  return jnp.tanh(inputs @ params["first"] + params["bias"][None]) @ params["second"]


def run(optimizer, oracle_at, params, batches, watch=lambda state: None):
  """Parameters before the first step and after each, as one tree of stacked arrays."""

  @jax.jit
  def step(params, state, batch):
    value_fn = oracle_at(params, batch)
    updates, state = optimizer.update(jax.grad(value_fn)(params), state, params, value_fn=value_fn)
    return optax.apply_updates(params, updates), state

  state, path = optimizer.init(params), [params]
  for batch in batches:
    params, state = step(params, state, batch)
    path.append(params)
    watch(state)
  return jax.tree.map(lambda *leaves: np.stack(leaves), *path)


def oracle_of(loss, model, params, batch):
  """The Oracle of `loss(outputs, targets)` on a batch of inputs and targets."""
  inputs, targets = batch

  def outputs(params):
    return model(params, inputs)

  def loss_of(outputs):
    return loss(outputs, targets)

  return Oracle(lambda params: loss_of(outputs(params)), params, outputs=outputs, loss_of=loss_of)


# egn against the official code


def half_squared_error(outputs, targets):
  """The paper's loss of one output, (1 / 2B) sum_i (y_i - f_i)^2."""
  return jnp.mean((targets - outputs[:, 0]) ** 2) / 2


def mean_cross_entropy(outputs, targets):
  return jnp.mean(optax.softmax_cross_entropy(outputs, targets))


@pytest.mark.parametrize(
  ("name", "loss"),
  [("squared_error", half_squared_error), ("cross_entropy", mean_cross_entropy)],
)
@pytest.mark.parametrize(("wide", "tolerance"), [(True, 1e-9), (False, 2e-4)])
def test_egn_is_the_official_one_for_twenty_steps(name, loss, wide, tolerance):
  golden = values.load("egn")
  expected = golden[name]["params"]
  with jax.enable_x64(wide):
    path = run(
      egn(golden["learning_rate"], damping=golden["damping"]),
      functools.partial(oracle_of, loss, network),
      {leaf: jnp.asarray(expected[leaf][0]) for leaf in NAMES},
      [
        (jnp.asarray(golden[name]["inputs"][t]), jnp.asarray(golden[name]["targets"][t]))
        for t in range(20)
      ],
    )
  for leaf in NAMES:
    assert path[leaf].shape == expected[leaf].shape
    assert path[leaf].dtype == (np.float64 if wide else np.float32)
    np.testing.assert_allclose(path[leaf], expected[leaf], rtol=tolerance, atol=tolerance)


OPTIONS = {
  "momentum": {"momentum": 0.6},
  "increase": {"line_search": "increase", "momentum": 0.6},
  "conservative": {"line_search": "conservative"},
  "goldstein": {"line_search": "goldstein"},
}


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize(
  ("name", "loss"),
  [("squared_error", half_squared_error), ("cross_entropy", mean_cross_entropy)],
)
def test_egn_with_its_options_is_the_official_one_for_twenty_steps(option, name, loss):
  golden = values.load("egn")
  expected, options = golden[option][name], golden[option]["options"]
  settings = {
    "learning_rate": options.get("learning_rate", golden["learning_rate"]),
    "damping": options.get("regularizer", golden["damping"]),
  }
  steps = []
  with jax.enable_x64(True):
    path = run(
      egn(**settings, **OPTIONS[option]),
      functools.partial(oracle_of, loss, network),
      {leaf: jnp.asarray(expected["params"][leaf][0]) for leaf in NAMES},
      [
        (jnp.asarray(expected["inputs"][t]), jnp.asarray(expected["targets"][t])) for t in range(20)
      ],
      watch=lambda state: steps.append(float(state.metrics["step_size"])),
    )
  np.testing.assert_allclose(steps, expected["steps"], rtol=1e-6)
  for leaf in NAMES:
    np.testing.assert_allclose(path[leaf], expected["params"][leaf], rtol=1e-7, atol=1e-7)


# egn against the dense system in the space of the parameters


def by_hand(params, inputs):
  """Outputs `[B, C]` of the network, and their Jacobian `[B, C, P]`, leaves in NAMES' order."""
  hidden = np.tanh(inputs @ params["first"] + params["bias"])
  outputs = hidden @ params["second"]
  slope = (1 - hidden**2)[:, None, :] * params["second"].T[None]
  first = np.einsum("bf,bch->bcfh", inputs, slope)
  second = np.einsum("bh,cd->bchd", hidden, np.eye(outputs.shape[1]))
  parts = [part.reshape(*outputs.shape, -1) for part in (first, slope, second)]
  return outputs, np.concatenate(parts, axis=2)


def squared_error_by_hand(outputs, targets):
  return 2 * (outputs - targets), np.tile(2 * np.eye(outputs.shape[1]), (len(outputs), 1, 1))


def cross_entropy_by_hand(outputs, labels):
  p = np.exp(outputs) / np.exp(outputs).sum(axis=1, keepdims=True)
  curvature = p[:, :, None] * np.eye(p.shape[1]) - p[:, :, None] * p[:, None, :]
  return p - np.eye(p.shape[1])[labels], curvature


def dense_direction(derivatives, params, batch, damping):
  """-(J^T Q J + lambda I)^{-1} J^T r of the mean over the examples that the mask counts."""
  counted = batch["mask"] > 0
  inputs, targets = batch["inputs"][counted], batch["truth"][counted]
  outputs, jacobian = by_hand(params, inputs)
  residual, curvature = derivatives(outputs, targets)
  gradient = np.einsum("bcp,bc->p", jacobian, residual) / len(inputs)
  matrix = np.einsum("bcp,bcd,bdq->pq", jacobian, curvature, jacobian) / len(inputs)
  flat = -np.linalg.solve(matrix + damping * np.eye(len(gradient)), gradient)
  ends = np.cumsum([params[name].size for name in NAMES])[:-1]
  return {
    name: part.reshape(params[name].shape)
    for name, part in zip(NAMES, np.split(flat, ends), strict=True)
  }


def problem(classes):
  """Seven examples, two of them masked, and a network with at most 30 parameters."""
  rng = np.random.default_rng(classes)
  batch = {"inputs": rng.normal(size=(7, 3)), "mask": np.array([1, 1, 0, 1, 1, 0, 1])}
  batch |= {"targets": rng.normal(size=(7, classes)), "labels": rng.integers(classes, size=7)}
  shapes = {"first": (3, 4), "bias": (4,), "second": (4, classes)}
  return batch, {name: rng.normal(size=shape) for name, shape in shapes.items()}


def library_oracle(loss, params, batch):
  """The Oracle that the train step would make of one of our losses."""

  def forward_at(params):
    return lambda inputs: network(params, inputs)

  return oracle.objective_oracle(oracle.lift(loss), (), forward_at, batch, KEY, params)


CASES = [
  pytest.param(squared_error, squared_error_by_hand, "targets", 1, id="squared_error-one_output"),
  pytest.param(squared_error, squared_error_by_hand, "targets", 3, id="squared_error"),
  pytest.param(cross_entropy, cross_entropy_by_hand, "labels", 3, id="cross_entropy"),
]


@pytest.mark.parametrize(("loss", "derivatives", "truth", "classes"), CASES)
def test_egn_is_the_dense_solve_on_the_examples_that_count(loss, derivatives, truth, classes):
  batch, start = problem(classes)
  rate, damping = 0.8 / np.sqrt(1 + np.arange(6)), 0.3 * 0.8 ** np.arange(6)
  params, expected = start, [start]
  for t in range(6):
    direction = dense_direction(derivatives, params, {**batch, "truth": batch[truth]}, damping[t])
    params = {name: params[name] + rate[t] * direction[name] for name in NAMES}
    expected.append(params)

  rates, dampings = jnp.asarray(rate), jnp.asarray(damping)
  path = run(
    egn(lambda count: rates[count], damping=lambda count: dampings[count]),
    functools.partial(library_oracle, loss),
    jax.tree.map(jnp.asarray, start),
    [jax.tree.map(jnp.asarray, batch)] * 6,
  )
  for name in NAMES:
    wanted = np.stack([params[name] for params in expected])
    np.testing.assert_allclose(path[name], wanted, rtol=1e-4, atol=1e-4)


def one_step(loss, params, batch, **hyper):
  """The change of the parameters in one step with learning rate 1."""
  start = jax.tree.map(jnp.asarray, params)
  oracle_at = functools.partial(library_oracle, loss)
  path = run(egn(1.0, **hyper), oracle_at, start, [jax.tree.map(jnp.asarray, batch)])
  return jax.tree.map(lambda leaf: leaf[1] - leaf[0], path)


@pytest.mark.parametrize(("loss", "derivatives", "truth", "classes"), CASES[1:])
def test_egn_does_not_see_masked_examples(loss, derivatives, truth, classes):
  del derivatives
  batch, params = problem(classes)
  counted = {name: array[batch["mask"] > 0] for name, array in batch.items()}
  batch["inputs"] = np.where(batch["mask"][:, None] > 0, batch["inputs"], 100.0)
  whole, part = (one_step(loss, params, b, damping=0.2) for b in (batch, counted))
  for name in NAMES:
    np.testing.assert_allclose(whole[name], part[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("loss", "derivatives", "truth", "classes"), CASES)
def test_egn_is_scaled_gradient_descent_at_a_large_damping(loss, derivatives, truth, classes):
  batch, params = problem(classes)
  with jax.enable_x64(True):
    change = one_step(loss, params, batch, damping=1e7)
  outputs, jacobian = by_hand(params, batch["inputs"])
  residual, _ = derivatives(outputs, batch[truth])
  weighted = residual * batch["mask"][:, None] / batch["mask"].sum()
  gradient = np.einsum("bcp,bc->p", jacobian, weighted)
  flat = np.concatenate([change[name].reshape(-1) for name in NAMES])
  np.testing.assert_allclose(-1e7 * flat, gradient, atol=1e-5 * abs(gradient).max())


def quadratic_model(outputs, jacobian, targets, change):
  """The change of the mean squared error that Gauss-Newton expects."""
  moved = np.einsum("bcp,p->bc", jacobian, change)
  return 2 * np.sum((outputs - targets) * moved + moved**2 / 2) / len(outputs)


def summed_squared_error(predictions, targets):
  return jnp.sum((predictions - targets) ** 2, axis=-1)


def flat(params):
  return np.concatenate([params[name].reshape(-1) for name in NAMES])


def test_egn_adapts_its_damping_by_the_gain_of_each_step():
  batch, params = problem(2)
  batch = {**batch, "mask": np.ones(7, int), "truth": batch["targets"]}
  dampings, expected, got, damping = [], [params], [], 1e-3
  for _ in range(20):
    direction = dense_direction(squared_error_by_hand, params, batch, damping)
    after = {name: params[name] + direction[name] for name in NAMES}
    outputs, jacobian = by_hand(params, batch["inputs"])
    errors = [np.sum((by_hand(p, batch["inputs"])[0] - batch["targets"]) ** 2) / 7
              for p in (params, after)]  # fmt: skip
    model = quadratic_model(outputs, jacobian, batch["targets"], flat(direction))
    gain = (errors[1] - errors[0]) / model
    damping *= 1.5 if gain < 0.25 else 0.5 if gain > 0.75 else 1
    params = after
    dampings.append(damping)
    expected.append(after)
  assert max(np.diff(dampings)) > 0 > min(np.diff(dampings))
  with jax.enable_x64(True):
    path = run(
      egn(1.0, damping=1e-3, adaptive_damping=True, damping_up=1.5, damping_down=0.5),
      functools.partial(library_oracle, summed_squared_error),
      jax.tree.map(jnp.asarray, expected[0]),
      [jax.tree.map(jnp.asarray, batch)] * 20,
      watch=lambda state: got.append(float(state.metrics["damping"])),
    )
  np.testing.assert_allclose(got, dampings, rtol=1e-6)
  for name in NAMES:
    wanted = np.stack([params[name] for params in expected])
    np.testing.assert_allclose(path[name], wanted, rtol=1e-6, atol=1e-6)


def half_bent(outputs, labels):
  """Curved in the first output alone: half of the gradient lies outside the range of Q."""
  del labels
  return outputs[:, 0] ** 2 + outputs[:, 1]


def half_bent_by_hand(outputs, labels):
  del labels
  residual = np.stack([2 * outputs[:, 0], np.ones(len(outputs))], axis=1)
  return residual, np.tile(np.diag([2.0, 0.0]), (len(outputs), 1, 1))


@pytest.mark.parametrize("max_system", [14, 0])
def test_egn_moves_what_the_curvature_does_not_see(max_system):
  batch, params = problem(2)
  expected = dense_direction(half_bent_by_hand, params, {**batch, "truth": batch["labels"]}, 0.3)

  def loss(logits, labels):
    return half_bent(logits, labels)

  with jax.enable_x64(True):
    change = one_step(loss, params, batch, damping=0.3, max_system=max_system)
  for name in NAMES:
    np.testing.assert_allclose(change[name], expected[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("loss", "derivatives", "truth", "classes"), CASES[1:])
def test_egn_of_independent_examples_is_the_same(loss, derivatives, truth, classes):
  del derivatives
  batch, params = problem(classes)
  whole, single = (
    one_step(loss, params, batch, damping=0.2, independent=choice) for choice in (False, True)
  )
  for name in NAMES:
    np.testing.assert_allclose(single[name], whole[name], rtol=1e-4, atol=1e-6)


def test_egn_guards_its_system_in_float32():
  rng = np.random.default_rng(0)
  inputs, targets = rng.normal(size=(40, 5)), rng.normal(size=(40, 2))
  inputs[:, 4] = inputs[:, 3]  # 80 outputs of rank 8
  path = run(
    egn(1.0, damping=1e-12),
    functools.partial(oracle_of, lambda z, y: jnp.mean(squared_error(z, y)), lambda w, x: x @ w),
    jnp.zeros((5, 2)),
    [(jnp.asarray(inputs), jnp.asarray(targets))] * 3,
  )
  fit = np.linalg.lstsq(inputs, targets)[0]
  best = np.sum((inputs @ fit - targets) ** 2)
  error = [np.sum((inputs @ w - targets) ** 2) for w in path]
  assert error[-1] < best + 1e-3 * (error[0] - best)


# egn against least squares


@pytest.mark.parametrize("examples", [12, 3])
def test_egn_solves_least_squares_in_one_step_as_the_damping_vanishes(examples):
  rng = np.random.default_rng(examples)
  inputs, targets = rng.normal(size=(examples, 5)), rng.normal(size=(examples, 2))
  start = rng.normal(size=(5, 2))
  # with fewer examples than inputs, the nearest of all exact fits
  expected = start + np.linalg.lstsq(inputs, targets - inputs @ start)[0]
  with jax.enable_x64(True):
    path = run(
      egn(1.0, damping=1e-8),
      functools.partial(oracle_of, lambda z, y: jnp.mean(squared_error(z, y)), lambda w, x: x @ w),
      jnp.asarray(start),
      [(jnp.asarray(inputs), jnp.asarray(targets))],
    )
  np.testing.assert_allclose(path[1], expected, rtol=1e-6, atol=1e-6)
