"""Values of methods that take gradients at perturbed or changed parameters, or mask them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrl import models, oracle, parallel, spec, train
from objectives.classification.cross_entropy import cross_entropy
from objectives.regression.squared_error import squared_error
from optimizers.amp import amp
from optimizers.booster import booster
from optimizers.gradient_regularization import gradient_regularization
from optimizers.ignite import ignite
from optimizers.sgtm import eval_params, sgtm
from tests import values


def close(actual, expected, tolerance=1e-5):
  np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)


def network(params):
  """The hidden layer of tanh that the official codes were run on."""
  return lambda inputs: jnp.tanh(inputs @ params["first"] + params["bias"][None]) @ params["second"]


def stepper(optimizer, objective, forward_at):
  """A compiled step on a batch; returns parameters, state and loss."""

  @jax.jit
  def step(params, state, batch):
    key = jax.random.key(0)
    value_fn = oracle.objective_oracle(objective, (), forward_at, batch, key, params)
    value, grad = jax.value_and_grad(value_fn)(params)
    updates, state = optimizer.update(
      grad, state, params, value=value, grad=grad, value_fn=value_fn
    )
    return optax.apply_updates(params, updates), state, value

  return step


def one_update(optimizer, loss, params, **parts):
  """The update at `params`, of the first step."""
  value_fn = oracle.Oracle(loss, params, **parts)
  grad = jax.grad(value_fn)(params)
  return optimizer.update(grad, optimizer.init(params), params, value_fn=value_fn)


def quadratic(rng, size=4):
  matrix = rng.normal(size=(size, size))
  return matrix @ matrix.T


# amp


@pytest.mark.parametrize("run", [0, 1])
def test_amp_is_the_official_one_for_twenty_five_steps(run):
  golden = values.load("amp")
  setting, expected = golden["runs"][run]["setting"], golden["runs"][run]
  optimizer = optax.chain(
    amp(**setting),
    optax.add_decayed_weights(golden["decay"]),
    optax.sgd(golden["learning_rate"], momentum=golden["momentum"], nesterov=True),
  )
  step = stepper(optimizer, oracle.lift(cross_entropy), network)
  params = jax.tree.map(jnp.float32, golden["start"])
  batch = {"inputs": jnp.float32(golden["inputs"]), "labels": jnp.asarray(golden["labels"])}
  state, losses = optimizer.init(params), []
  for _ in expected["losses"]:
    params, state, value = step(params, state, batch)
    losses.append(value)
  assert len(losses) == 25
  close(losses, expected["losses"])
  for name, end in expected["end"].items():
    close(params[name], end)


def test_amp_in_one_ball_around_all_parameters():
  params = {"x": jnp.array([3.0, 0.0]), "y": jnp.array(4.0)}

  def loss(w):
    return (jnp.sum(w["x"] ** 2) + w["y"] ** 2) / 2

  updates, _ = one_update(amp(epsilon=1.0, ball="global"), loss, params)
  close(updates["x"], [3.6, 0])  # w + w / |w|
  close(updates["y"], 4.8)
  updates, _ = one_update(amp(epsilon=1.0, ball="tensor"), loss, params)
  close(updates["x"], [4, 0])
  close(updates["y"], 5)
  updates, _ = one_update(amp(epsilon=6.0, inner_lr=0.5, ball="global"), loss, params)
  close(updates["y"], 6)  # within the ball: w + w / 2


# gradient_regularization


def cubic_gradient(matrix, w):
  """The gradient of w^T A w / 2 + sum w^4 / 4."""
  return matrix @ w + w**3


@pytest.mark.parametrize("norm", ["squared", "norm"])
@pytest.mark.parametrize("method", ["forward", "backward", "central", "exact"])
def test_gradient_regularization_is_the_one_in_numpy_for_twenty_steps(method, norm):
  rng = np.random.default_rng(0)
  gamma, eps, rate = 0.2, 0.3, 0.02
  matrix, start = quadratic(rng), rng.normal(size=4)
  expected = start
  for _ in range(20):
    g = cubic_gradient(matrix, expected)
    v = g / np.linalg.norm(g) if norm == "norm" else g
    ahead, behind = (cubic_gradient(matrix, expected + s * eps * v) for s in (1, -1))
    change = {
      "forward": (ahead - g) / eps,
      "backward": (g - behind) / eps,
      "central": (ahead - behind) / (2 * eps),
      "exact": (matrix + 3 * np.diag(expected**2)) @ v,
    }[method]
    expected = expected - rate * (g + gamma * change)
  optimizer = optax.chain(
    gradient_regularization(gamma, eps, method=method, norm=norm), optax.sgd(rate)
  )

  @jax.jit
  def step(params, state):
    def loss(w):
      return jnp.dot(w, jnp.float32(matrix) @ w) / 2 + jnp.sum(w**4) / 4

    updates, state = optimizer.update(jax.grad(loss)(params), state, params, value_fn=loss)
    return optax.apply_updates(params, updates), state

  params = jnp.float32(start)
  state = optimizer.init(params)
  for _ in range(20):
    params, state = step(params, state)
  close(params, expected)


@pytest.mark.parametrize("method", ["forward", "backward", "central", "exact"])
def test_gradient_regularization_of_a_quadratic_is_exact_for_every_step(method):
  rng = np.random.default_rng(1)
  matrix, point = quadratic(rng), rng.normal(size=4)
  for eps in (0.01, 1.0):
    updates, _ = one_update(
      gradient_regularization(0.5, eps, method=method),
      lambda w: jnp.dot(w, jnp.float32(matrix) @ w) / 2,
      jnp.float32(point),
    )
    expected = matrix @ point + 0.5 * matrix @ matrix @ point
    close(updates, expected, 1e-4 * np.abs(expected).max())


@pytest.mark.parametrize(("method", "signs"), [("backward", (-1, 1)), ("forward", (1, -1))])
def test_gradient_regularization_is_what_flooding_does_in_two_steps(method, signs):
  rng = np.random.default_rng(2)
  rate, matrix, start = 0.1, quadratic(rng), rng.normal(size=4)
  point = start
  for sign in signs:
    point = point + sign * rate * cubic_gradient(matrix, point)
  with jax.enable_x64(True):
    updates, _ = one_update(
      gradient_regularization(1.0, rate, method=method),
      lambda w: jnp.dot(w, matrix @ w) / 2 + jnp.sum(w**4) / 4,
      jnp.asarray(start),
    )
  change = np.asarray(updates) - cubic_gradient(matrix, start)
  close(point - start, -(rate**2) * change, 1e-12)


# ignite


def test_ignite_is_the_official_one_for_twenty_five_steps():
  golden = values.load("ignite")
  names = ("rho", "r", "lam", "eta", "epsilon")
  optimizer = optax.chain(
    ignite(**{name: golden[name] for name in names}), optax.sgd(golden["learning_rate"])
  )
  likelihood = oracle.lift(lambda predictions, targets: squared_error(predictions, targets) / 2)
  step = stepper(optimizer, likelihood, network)  # constants of the density aside
  params = jax.tree.map(jnp.float32, golden["start"])
  state, multipliers = optimizer.init(params), []
  for inputs, targets in zip(golden["inputs"], golden["targets"], strict=True):
    batch = {"inputs": jnp.float32(inputs), "targets": jnp.float32(targets)}
    params, state, _ = step(params, state, batch)
    multipliers.append(state[0].lam)
  assert len(multipliers) == 25
  close(multipliers, golden["multipliers"])
  for name, end in golden["end"].items():
    close(params[name], end)


def test_ignite_of_a_quadratic_prediction():
  rng = np.random.default_rng(3)
  matrix, point = quadratic(rng), rng.normal(size=4)
  slope = matrix @ point
  sharpness = 0.3 * np.linalg.norm(slope)

  def outputs(w):
    return (jnp.dot(w, jnp.float32(matrix) @ w) / 2).reshape(1, 1)

  for epsilon, clamp, after in ((0.1, False, 0.2 + 0.5 * (sharpness - 0.1)), (99.0, True, 0.0)):
    optimizer = ignite(0.3, 0.1, lam=0.2, eta=0.5, epsilon=epsilon, clamp=clamp)
    updates, state = one_update(optimizer, jnp.sum, jnp.float32(point), outputs=outputs)
    close(updates, 1 + 0.2 * 0.3 * matrix @ slope / np.linalg.norm(slope), 1e-4)
    close([state.lam, state.metrics["sharpness"]], [after, sharpness])


def test_ignite_does_without_a_slope():
  updates, _ = one_update(ignite(), jnp.sum, jnp.ones(3), outputs=lambda w: jnp.zeros((2, 1)))
  np.testing.assert_array_equal(updates, np.ones(3))


# booster


def test_booster_is_the_official_one_for_twenty_five_steps():
  golden = values.load("booster")
  ordinary, harmful = golden["ordinary"], golden["harmful"]
  optimizer = optax.chain(
    booster(golden["lam"], alpha=golden["alpha"]),
    optax.adamw(golden["learning_rate"], weight_decay=golden["decay"]),
  )
  group = jnp.array([0] * ordinary["labels"].shape[1] + [1] * harmful["labels"].shape[1])
  inputs = jnp.float32(np.concatenate([ordinary["inputs"], harmful["inputs"]], axis=1))
  labels = jnp.asarray(np.concatenate([ordinary["labels"], harmful["labels"]], axis=1))
  step = stepper(optimizer, oracle.lift(cross_entropy), network)
  params = jax.tree.map(jnp.float32, golden["start"])
  state = optimizer.init(params)
  for rows, classes, expected in zip(inputs, labels, golden["losses"], strict=True):
    own = cross_entropy(network(params)(rows[group == 0]), classes[group == 0])
    close(jnp.mean(own), expected, 2e-5)
    params, state, _ = step(params, state, {"inputs": rows, "labels": classes, "group": group})
  for name, end in golden["end"].items():
    close(params[name], end, 2e-5)


# sgtm

UP_LAST = {"up$": (1, 3), "up_bias$": (0, 3), "down$": (0, 3), "down_bias$": (0, 0)}


def multilayer(params):
  def forward(inputs):
    hidden = jax.nn.gelu(inputs @ params["up"] + params["up_bias"][None], approximate=False)
    return hidden @ params["down"] + params["down_bias"][None]

  return forward


def mean_squares(predictions, targets):
  return jnp.mean((predictions - targets) ** 2, axis=-1)


def test_sgtm_is_the_official_one_for_twenty_four_steps():
  golden = values.load("sgtm")
  b1, b2 = golden["betas"]
  optimizer = optax.chain(
    sgtm(UP_LAST, retain_group=2),
    optax.adamw(golden["learning_rate"], b1, b2, weight_decay=golden["decay"]),
  )
  assert golden["forget"] == 3
  step = stepper(optimizer, oracle.lift(mean_squares), multilayer)
  params = jax.tree.map(jnp.float32, golden["start"])
  state = optimizer.init(params)
  for inputs, targets, mode in zip(
    golden["inputs"], golden["targets"], golden["modes"], strict=True
  ):
    batch = {
      "inputs": jnp.float32(inputs),
      "targets": jnp.float32(targets),
      "group": jnp.full(len(inputs), mode),
    }
    params, state, _ = step(params, state, batch)
  answer = eval_params(state[0], params)
  for name in params:
    close(params[name], golden["end"][name])
    close(answer[name], golden["ablated"][name])
  close(multilayer(answer)(jnp.float32(golden["inputs"][0])), golden["retained"])


def mixed_batch(groups):
  rng = np.random.default_rng(4)
  return {
    "inputs": jnp.float32(rng.normal(size=(len(groups), 4))),
    "targets": jnp.float32(rng.normal(size=(len(groups), 4))),
    "group": jnp.array(groups),
  }


def sgtm_gradient(groups, retain_group=2, mask=None):
  golden = values.load("sgtm")
  params = jax.tree.map(jnp.float32, golden["start"])
  batch = mixed_batch(groups) | ({} if mask is None else {"mask": jnp.array(mask)})
  optimizer = sgtm(UP_LAST, retain_group=retain_group)
  step = stepper(optimizer, oracle.lift(mean_squares), multilayer)
  moved, state, _ = step(params, optimizer.init(params), batch)
  return jax.tree.map(jnp.subtract, moved, params), params, state[0], batch


def test_sgtm_on_a_mixed_batch_adds_up_what_each_kind_trains():
  mixed = sgtm_gradient([0, 1, 2, 1, 0, 2, 2, 1])[0]
  parts = [0, 1, 2]
  total = jax.tree.map(jnp.zeros_like, mixed)
  for kind in parts:
    rows = [float(group == kind) for group in [0, 1, 2, 1, 0, 2, 2, 1]]
    alone = sgtm_gradient([0, 1, 2, 1, 0, 2, 2, 1], mask=rows)[0]
    share = sum(rows) / len(rows)
    total = jax.tree.map(lambda t, a, share=share: t + share * a, total, alone)
  jax.tree.map(lambda m, t: close(m, t, 2e-6), mixed, total)


def test_sgtm_leaves_the_other_part_alone_to_the_last_bit():
  forgetting, _, forget, _ = sgtm_gradient([1, 1, 1])
  kept = {"up": (slice(None), slice(7)), "up_bias": slice(7), "down": slice(7), "down_bias": ...}
  for name, entries in kept.items():
    assert not np.any(forgetting[name][entries])
    assert np.any(forgetting[name]) == np.any(forget[name])
  retaining, *_ = sgtm_gradient([2, 2, 2])
  for name, f in forget.items():
    assert not np.any(np.where(f, retaining[name], 0))
    assert np.all(np.where(f, 1, retaining[name]))


def test_sgtm_passes_what_comes_in_for_batches_of_neither_kind():
  for retain_group in (None, 2):
    passed, params, _, batch = sgtm_gradient([0, 3, 0], retain_group)

    def loss(params, batch=batch):
      return jnp.mean(mean_squares(multilayer(params)(batch["inputs"]), batch["targets"]))

    expected = jax.grad(loss)(params)
    jax.tree.map(lambda p, e: close(p, e, 1e-6), passed, expected)


@pytest.mark.parametrize(
  ("groups", "retain_group", "expected"),
  [
    ([0, 0, 0], 2, 0),
    ([1, 1, 1], 2, 0),
    ([2, 2, 2], 2, 1),
    ([0, 1, 0], None, 1),
    ([0, 1, 2], 2, 3),
  ],
)
def test_sgtm_evaluates_only_what_a_batch_needs(groups, retain_group, expected):
  params = jax.tree.map(jnp.float32, values.load("sgtm")["start"])
  batch, count = mixed_batch(groups), []

  def of_rows(params, rows, share):
    jax.debug.callback(lambda: count.append(None))
    return jnp.sum(params["up"]) * jnp.sum(rows)

  value_fn = oracle.Oracle(jnp.sum, params, of_rows=of_rows, batch=batch)
  optimizer = sgtm(UP_LAST, retain_group=retain_group)
  update = jax.jit(lambda g: optimizer.update(g, optimizer.init(g), g, value_fn=value_fn))
  jax.block_until_ready(update(params))
  jax.effects_barrier()
  assert len(count) == expected


@pytest.mark.parametrize(
  ("split", "message"),
  [
    ({"side": (0, 1)}, "split['side'] finds no parameter; there are: down, down_bias, up, up_bias"),
    ({"up$": (2, 1)}, "split must name an axis of up, of shape (4, 10)"),
    ({"up$": (1, 11)}, "at most as many entries as it has, got (1, 11)"),
  ],
)
def test_sgtm_says_what_it_did_not_find(split, message):
  params = jax.tree.map(jnp.float32, values.load("sgtm")["start"])
  with pytest.raises(ValueError) as error:
    sgtm(split).init(params)
  assert message in str(error.value)


# Whole train steps: by command-line specs, and with workers.


def train_step(optimizer, axis_name=None):
  parts = train.make_train(
    models.make("mlp", 3),
    spec.objective("cross_entropy()"),
    spec.optimizer(optimizer),
    jnp.zeros((1, 4, 4, 1)),
    axis_name=axis_name,
  )
  rng = np.random.default_rng(5)
  batch = {
    "inputs": jnp.float32(rng.normal(size=(16, 4, 4, 1))),
    "labels": jnp.asarray(rng.integers(3, size=16)),
    "group": jnp.asarray(rng.integers(3, size=16)),
    "mask": jnp.float32(rng.choice([0.0, 0.5, 1.0], size=16)),
  }
  return parts, batch


@pytest.mark.parametrize(
  "method", ["booster()", "sgtm({'kernel$': (1, 2), 'bias$': (0, 2)}, retain_group=2)"]
)
def test_groups_of_rows_in_the_train_step_alone_and_on_a_mesh(method):
  parts, batch = train_step(f"{method} | sgd(0.1)")
  state = jax.jit(parts.init)(0)
  alone, metrics = jax.jit(parts.step)(state, batch)
  assert jnp.isfinite(metrics["loss"])
  mesh = parallel.make_mesh("data=8")
  program = parallel.lay_out(parts, mesh, None, 0)
  spread, _ = program.step(program.init(0), program.place(jax.device_get(batch)))
  jax.tree.map(lambda a, s: close(a, s, 1e-5), alone.params, spread.params)


def test_booster_with_workers_is_that_of_the_whole_batch():
  parts, batch = train_step("booster() | sgd(0.1)")
  alone, _ = jax.jit(parts.step)(jax.jit(parts.init)(0), batch)
  parts, _ = train_step("booster() | sgd(0.1)", axis_name="data")
  program = parallel.lay_out(parts, parallel.make_mesh("data=8"), "data", 0)
  spread, _ = program.step(program.init(0), program.place(jax.device_get(batch)))
  jax.tree.map(lambda a, s: close(a, s, 1e-5), alone.params, spread.params)
