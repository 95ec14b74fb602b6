"""Values of methods against instability and sharp minima: official code, NumPy, closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrl import models, oracle, reduce, train
from objectives.classification.cross_entropy import cross_entropy
from objectives.classification.saf import mesa, saf
from objectives.classification.stablemax import log_stablemax, stablemax
from optimizers.coordinate_clip import adam_coordinate_clip, coordinate_clip
from optimizers.gravity import gravity
from optimizers.perp_grad import perp_grad
from optimizers.udim import udim
from tests import values

RNG = np.random.default_rng(0)


def close(actual, expected, tolerance=1e-5):
  np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)


def logits_of(params, inputs):
  """The small classifier that the scripts of goldens train."""
  return jnp.tanh(inputs @ params["first"] + params["bias"][None]) @ params["second"]


def classifier(golden):
  """Its loss as a function of the parameters."""
  inputs, labels = jnp.asarray(golden["inputs"]), jnp.asarray(golden["labels"])
  return lambda params: jnp.mean(cross_entropy(logits_of(params, inputs), labels))


def assert_trains_as(golden, optimizer, run, state=None):
  """In float64, the losses and the last parameters are those of the official run."""
  loss, params = classifier(golden), jax.tree.map(jnp.asarray, golden["start"])
  state = optimizer.init(params) if state is None else state

  @jax.jit
  def step(params, state):
    value, gradient = jax.value_and_grad(loss)(params)
    updates, state = optimizer.update(gradient, state, params)
    return optax.apply_updates(params, updates), state, value

  assert len(run["losses"]) >= 20
  for expected in run["losses"]:
    params, state, value = step(params, state)
    close(value, expected, 1e-9)
  for name, end in run["end"].items():
    close(params[name], end, 1e-9)


# perp_grad


def test_perp_grad_is_the_official_one_for_thirty_steps():
  with jax.enable_x64(True):
    golden = values.load("perp_grad")
    bases = {
      "sgd": optax.sgd(0.3, momentum=0.8),
      "adamw": optax.adamw(0.03, b2=0.99, weight_decay=0),
    }
    for name, base in bases.items():
      assert_trains_as(golden, optax.chain(perp_grad(), base), golden["runs"][name])


def test_perp_grad_is_perpendicular_to_each_tensor_and_as_long_as_the_gradient():
  params = {"kernel": RNG.normal(size=(7, 3)), "bias": 1e-6 * RNG.normal(size=5)}
  gradient = jax.tree.map(lambda w: jnp.asarray(1e4 * RNG.normal(size=w.shape) + w), params)
  optimizer = perp_grad()
  updates, _ = optimizer.update(gradient, optimizer.init(params), jax.tree.map(jnp.asarray, params))
  for name, update in updates.items():
    size, w = np.linalg.norm(gradient[name]), params[name] / np.linalg.norm(params[name])
    close(np.linalg.norm(update), size)
    assert abs(np.sum(update * w)) < 1e-5 * size


def test_perp_grad_without_rescaling_is_a_projection():
  w, gradient = RNG.normal(size=(2, 6))
  updates, _ = perp_grad(rescale=False).update(jnp.asarray(gradient), (), jnp.asarray(w))
  close(updates, (np.eye(6) - np.outer(w, w) / (w @ w)) @ gradient)


def test_perp_grad_keeps_the_gradient_of_zeros_and_drops_a_parallel_one():
  w = jnp.asarray(RNG.normal(size=9), jnp.float32)
  params = {"zeros": jnp.zeros(9), "parallel": w, "scalar": jnp.array(0.3)}
  gradient = {"zeros": w, "parallel": -1.7 * w, "scalar": jnp.array(2.0)}
  updates, _ = perp_grad().update(gradient, (), params)
  close(updates["zeros"], w, 1e-6)
  np.testing.assert_array_equal(updates["parallel"], 0)
  assert updates["scalar"] == 0


# stablemax


def test_stablemax_is_the_official_one_for_logits_small_and_large():
  golden = values.load("stablemax")
  labels, logits = jnp.asarray(golden["labels"]), jnp.asarray(golden["logits"], jnp.float32)
  close(stablemax(logits, labels), golden["values"])
  gradient = jax.grad(lambda logits: jnp.sum(stablemax(logits, labels)))(logits)
  np.testing.assert_allclose(gradient, golden["gradient"], rtol=1e-4, atol=1e-12)


def test_stablemax_of_classes_is_that_of_their_probabilities():
  logits, labels = jnp.asarray(RNG.normal(size=(5, 3)), jnp.float32), jnp.array([0, 2, 1, 1, 0])
  close(stablemax(logits, jax.nn.one_hot(labels, 3)), stablemax(logits, labels))


def test_stablemax_has_a_slope_of_one_at_zero():
  def log_odds(x):  # log s(x) - log s(0)
    log_p = log_stablemax(jnp.stack([x, jnp.zeros(())]))
    return log_p[0] - log_p[1]

  slopes = jax.vmap(jax.grad(log_odds))(jnp.array([-1e-6, 0.0, 1e-6, -3.0, 3.0]))
  close(slopes, [1, 1, 1, 0.25, 0.25])


def test_stablemax_still_has_a_gradient_where_the_softmax_has_none():
  logits, labels = jnp.array([[200.0, 0.0, 0.0]]), jnp.array([0])
  gradients = [
    jax.grad(lambda logits, loss=loss: loss(logits, labels)[0])(logits)
    for loss in (cross_entropy, stablemax)
  ]
  np.testing.assert_array_equal(gradients[0], 0)
  close(gradients[1], [[1 / 203 - 1 / 201, 1 / 203, 1 / 203]], 1e-6)


# coordinate_clip


def clipped_by_sorting(tree, fraction):
  entries = np.sort(np.concatenate([np.abs(x).reshape(-1) for x in tree.values()]))[::-1]
  clipped = int(entries.size * fraction)
  threshold = entries[clipped] if clipped < entries.size else 0.0
  return {name: np.sign(x) * np.minimum(np.abs(x), threshold) for name, x in tree.items()}


@pytest.mark.parametrize("fraction", [0.0, 0.03, 0.1, 0.3, 0.7, 0.995, 1.0])
def test_coordinate_clip_finds_the_threshold_of_a_sort(fraction):
  scales = {"kernel": (40, 3), "bias": (7,), "gain": ()}
  tree = {name: (RNG.normal(size=shape) ** 7).astype(np.float32) for name, shape in scales.items()}
  updates, state = coordinate_clip(fraction).update(jax.tree.map(jnp.asarray, tree), ())
  expected = clipped_by_sorting(tree, fraction)
  for name, update in updates.items():
    np.testing.assert_array_equal(update, expected[name])
  close(state.metrics["threshold"], max(np.max(np.abs(x)) for x in expected.values()))


def test_coordinate_clip_by_hand():
  gradient = jnp.array([10, -1, 0.3, 4, -2, 0.05, 0.7, -6, 0.2, 0.1])
  for fraction, threshold in {0.1: 6, 0.3: 2, 0.5: 0.7}.items():
    updates, _ = coordinate_clip(fraction).update(gradient, ())
    np.testing.assert_array_equal(updates, jnp.clip(gradient, -threshold, threshold))


def test_coordinate_clip_halves_the_directional_sharpness_of_an_ill_conditioned_bowl():
  hessian, gradient = np.array([100.0, 1.0]), jnp.array([10.0, 1.0])
  updates, _ = coordinate_clip(0.5).update(gradient, ())
  for direction, sharpness in ((gradient, 99.0198), (updates, 50.5)):
    close(np.sum(hessian * np.square(direction)) / np.sum(np.square(direction)), sharpness)


def test_coordinate_clip_of_local_gradients():
  mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
  gradients = RNG.normal(size=(8, 10)).astype(np.float32)
  spread, same = jax.sharding.PartitionSpec("data"), jax.sharding.PartitionSpec()

  def update(gradient):
    with reduce.over("data"):
      return coordinate_clip(0.3).update(gradient, ())

  by_worker = jax.jit(jax.shard_map(update, mesh=mesh, in_specs=spread, out_specs=(spread, same)))
  updates, state = by_worker(jnp.asarray(gradients))
  expected = [clipped_by_sorting({"": gradient}, 0.3)[""] for gradient in gradients]
  np.testing.assert_array_equal(updates, expected)
  close(state.metrics["threshold"], np.mean(np.max(np.abs(expected), axis=1)))


def test_adam_coordinate_clip_clips_the_first_moment_alone():
  optimizer, gradients = adam_coordinate_clip(0.1), RNG.normal(size=(25, 11)) ** 3
  state = optimizer.init(jnp.zeros(11))
  mu = nu = np.zeros(11)
  update = jax.jit(optimizer.update)
  for t, gradient in enumerate(gradients, start=1):
    updates, state = update(jnp.asarray(gradient, jnp.float32), state)
    mu = 0.9 * mu + 0.1 * clipped_by_sorting({"": gradient}, 0.5)[""]
    nu = 0.999 * nu + 0.001 * gradient**2
    close(updates, -0.1 * mu / (1 - 0.9**t) / (np.sqrt(nu / (1 - 0.999**t)) + 1e-8))


# gravity


def test_gravity_is_the_official_one_for_thirty_steps():
  with jax.enable_x64(True):
    golden = values.load("gravity")
    # The official code has drawn the velocities; without alpha nothing is added to them.
    optimizer = gravity(golden["lr"], alpha=0.0, beta=golden["beta"])
    state = optimizer.init(jax.tree.map(jnp.asarray, golden["start"]))
    state = state._replace(velocity=jax.tree.map(jnp.asarray, golden["velocity"]))
    assert_trains_as(golden, optimizer, golden, state)


def test_the_first_steps_of_gravity_are_random_and_of_size_alpha():
  optimizer = gravity(optax.linear_schedule(0.2, 0.0, 10), alpha=0.03, beta=0.9)
  gradient = jnp.zeros(100_000)
  updates, _ = optimizer.update(gradient, optimizer.init(gradient))
  # A normal sample's deviation is off by 0.2 % here.
  close(np.std(updates), 0.03 * 1.9 / 3, 1e-3)
  assert abs(np.mean(updates)) < 1e-3


def test_gravity_starts_still_where_its_learning_rate_does():
  optimizer = gravity(optax.linear_schedule(0.0, 0.1, 10))
  updates, state = optimizer.update(jnp.zeros(3), optimizer.init(jnp.zeros(3)))
  np.testing.assert_array_equal(updates, 0)
  np.testing.assert_array_equal(state.velocity, 0)


# saf


def batches_of(golden):
  """The batches of a golden's run, epoch after epoch."""
  inputs, labels = jnp.asarray(golden["inputs"], jnp.float32), jnp.asarray(golden["labels"])
  for index in golden["order"].reshape(-1, golden["order"].shape[-1]):
    rows = {"inputs": inputs[index], "labels": labels[index], "index": jnp.asarray(index)}
    yield {**rows, "mask": jnp.ones(len(index))}


def test_saf_is_the_official_one_for_thirty_steps():
  golden = values.load("saf")
  run, rate = golden["runs"]["saf"], golden["learning_rate"]
  objective = saf(len(golden["labels"]), 3, lag=golden["lag"], **golden["hyper"])
  params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), golden["start"])
  state = objective.init(jax.random.key(0))

  @jax.jit
  def step(params, state, batch):
    def loss(params):
      forward = lambda inputs: logits_of(params, inputs)  # noqa: E731
      terms, after, _ = objective.apply(state, forward, batch, jax.random.key(0))
      return oracle.total(terms), after

    (value, state), gradient = jax.value_and_grad(loss, has_aux=True)(params)
    return jax.tree.map(lambda w, g: w - rate * g, params, gradient), state, value

  for batch, expected in zip(batches_of(golden), run["losses"], strict=True):
    params, state, value = step(params, state, batch)
    close(value, expected)
  for name, end in run["end"].items():
    close(params[name], end)


def saf_evaluations(objective, evaluations):
  """Values `[B]` of evaluations in a row, and the last state."""
  state, shown = objective.init(jax.random.key(0)), []
  for logits, index, *mask in evaluations:
    batch = {"inputs": jnp.asarray(logits), "index": jnp.asarray(index)}
    batch |= {"labels": jnp.zeros(len(index), jnp.int32)}
    batch |= {"mask": jnp.asarray(mask[0], jnp.float32)} if mask else {}
    (term,), state, _ = objective.apply(state, lambda x: x, batch, jax.random.key(0))
    shown.append(term.values)
  return shown, state


def test_saf_looks_back_by_its_lag_between_its_epochs():
  lag, visits = 2, RNG.normal(size=(7, 1, 3)).astype(np.float32)
  objective = saf(4, 3, lam=2.0, temperature=3.0, lag=lag, start_epoch=2, end_epoch=6)
  shown, _ = saf_evaluations(objective, [(logits, [1]) for logits in visits])
  log_p = np.log(np.exp(visits / 3) / np.exp(visits / 3).sum(axis=-1, keepdims=True))
  for epoch, value in enumerate(shown):
    expected = cross_entropy(jnp.asarray(visits[epoch]), jnp.array([0]))
    if 2 < epoch < 6:
      old = log_p[epoch - lag]
      expected += 2.0 * 9.0 * np.sum(np.exp(old) * (old - log_p[epoch]))
    close(value, expected)


def test_saf_remembers_each_example_once_a_visit():
  logits = RNG.normal(size=(4, 3)).astype(np.float32)
  index, mask = [2, 0, 2, 3], [1, 1, 1, 0]
  _, state = saf_evaluations(saf(5, 3, lag=1), [(logits, index, mask)])
  np.testing.assert_array_equal(state.visits, [1, 0, 1, 0, 0])
  close(state.memory[2, 0], (logits[0] + logits[2]) / 2)
  close(state.memory[0, 0], logits[1])
  assert jnp.count_nonzero(state.memory) == 6


def test_saf_gives_nan_outside_the_data_set():
  (values_,), _ = saf_evaluations(saf(5, 3), [(np.ones((2, 3), np.float32), [4, 5])])
  np.testing.assert_array_equal(np.isnan(values_), [False, True])


# mesa


def mesa_run(golden, objective=None, optimizer=None, **options):
  """The train step and first state of the golden's run, its data in `batches_of`."""
  start = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), golden["start"])

  def apply(params, model_state, inputs, key, train):
    return logits_of(params, inputs), model_state

  parts = train.make_train(
    models.Model(lambda key, inputs: (start, ()), apply),
    objective or mesa(decay=golden["decay"], **golden["hyper"]),
    optimizer or optax.sgd(golden["learning_rate"]),
    jnp.zeros((1, 5)),
    steps_per_epoch=golden["order"].shape[1],
    **options,
  )
  return parts.step, jax.jit(parts.init)(0)


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_mesa_is_the_official_one_for_thirty_steps(micro_batches):
  golden = values.load("saf")
  run = golden["runs"]["mesa"]
  step, state = mesa_run(golden, micro_batches=micro_batches)
  step = jax.jit(step)
  for batch, expected in zip(batches_of(golden), run["losses"], strict=True):
    state, metrics = step(state, batch)
    close(metrics["loss"], expected)
  for name, end in run["end"].items():
    close(state.params[name], end)


def test_mesa_shows_an_oracle_the_same_teacher_at_every_point():
  golden, seen = values.load("saf"), {}

  def see(updates, state, params=None, *, value, value_fn, **extra_args):
    doubled = jax.tree.map(lambda w: 2 * w, params)
    outputs = value_fn.outputs(doubled)
    seen["values"] = value, value_fn(params), value_fn(doubled), value_fn.loss_of(outputs)
    return updates, state

  probe = optax.GradientTransformationExtraArgs(optax.init_empty_state, see)
  hyper = {**golden["hyper"], "start_epoch": 0, "decay": 0.5}
  step, state = mesa_run(golden, mesa(**hyper), optax.chain(probe, optax.sgd(0.1)))
  plain, _ = mesa_run(golden, mesa(**{**hyper, "lam": 0.0}), optax.chain(probe, optax.sgd(0.1)))
  batches = list(batches_of(golden))
  train_step = jax.jit(step)
  for batch in batches[:5]:
    state, _ = train_step(state, batch)

  def shown(function):
    def values_of(state, batch):
      function(state, batch)
      return seen["values"]

    return jax.jit(values_of)(state, batches[5])

  value, again, moved, of_outputs = shown(step)
  assert value == again
  close(moved, of_outputs)
  # By hand, from the averages that the state holds.
  inputs, temperature = batches[5]["inputs"], hyper["temperature"]
  doubled = jax.tree.map(lambda w: 2 * w, state.params)
  log_p, log_q = (
    jax.nn.log_softmax(logits_of(params, inputs) / temperature)
    for params in (state.teacher[0], doubled)
  )
  divergence = jnp.mean(jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1))
  close(moved - shown(plain)[2], hyper["lam"] * temperature**2 * divergence)


def test_objectives_of_a_sum_share_one_teacher():
  both = oracle.weighted_sum([(1.0, mesa(decay=0.5)), (1.0, oracle.lift(cross_entropy))])
  assert both.teacher == 0.5
  with pytest.raises(ValueError, match=r"share one teacher, got decays \[0.5, 0.9\]"):
    oracle.weighted_sum([(1.0, mesa(decay=0.5)), (1.0, mesa(decay=0.9))])


# udim


def test_udim_is_the_official_one_for_twenty_five_steps():
  with jax.enable_x64(True):
    golden = values.load("udim")
    batch = {name: jnp.asarray(golden[name]) for name in ("inputs", "labels")}
    optimizer = udim(golden["rho"], rho_x=golden["rho_x"], lam=golden["lam"], official=True)
    optimizer = optax.chain(optimizer, optax.sgd(golden["learning_rate"]))
    params = jax.tree.map(jnp.asarray, golden["start"])
    state = optimizer.init(params)

    @jax.jit
    def step(params, state):
      value_fn = featured_oracle(params, batch)
      value, gradient = jax.value_and_grad(value_fn)(params)
      updates, state = optimizer.update(gradient, state, params, value_fn=value_fn)
      return optax.apply_updates(params, updates), state, value

    for loss, penalty in zip(golden["losses"], golden["penalties"], strict=True):
      params, state, value = step(params, state)
      close(value, loss, 1e-8)
      close(state[0].metrics["inconsistency"], penalty, 1e-6)  # logged in float32
    for name, end in golden["end"].items():
      close(params[name], end, 1e-8)


def featured_oracle(params, batch):
  """The oracle of the golden's classifier, which shows its features."""

  def forward_at(params):
    def forward(inputs):
      features = jnp.tanh(inputs @ params["first"] + params["bias"][None])
      return {"features": features, "logits": features @ params["second"] + params["offset"][None]}

    return forward

  objective = oracle.lift(cross_entropy)
  return oracle.objective_oracle(objective, (), forward_at, batch, jax.random.key(0), params)


def test_udim_moves_each_example_by_rho_x_up_its_own_slope():
  golden, seen = values.load("udim"), []
  params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), golden["start"])
  inputs, labels = jnp.asarray(golden["inputs"], jnp.float32), jnp.asarray(golden["labels"])
  mask = jnp.array([1.0] * 7 + [0.0])
  value_fn = featured_oracle(params, {"inputs": inputs, "labels": labels, "mask": mask})
  shown = value_fn.outputs

  def outputs(params, inputs):
    seen.append(inputs)
    return shown(params, inputs)

  value_fn.outputs = outputs
  optimizer = udim(0.0, rho_x=0.3)
  optimizer.update(jax.grad(value_fn)(params), optimizer.init(params), params, value_fn=value_fn)
  steps = np.asarray(seen[-1] - inputs)
  close(np.linalg.norm(steps, axis=1), 0.3 * mask, 1e-4)

  def losses(inputs):  # with rho = 0 the slope is that of the loss
    return jnp.sum(cross_entropy(shown(params, inputs)["logits"], labels))

  slopes = np.asarray(jax.grad(losses)(inputs))[:7]
  close(steps[:7], 0.3 * slopes / np.linalg.norm(slopes, axis=1, keepdims=True), 1e-4)


def test_udim_wants_a_model_that_shows_its_features():
  batch, params = {"inputs": jnp.ones((2, 3)), "labels": jnp.array([0, 1])}, jnp.ones((3, 2))
  value_fn = oracle.objective_oracle(
    oracle.lift(cross_entropy), (), lambda w: lambda x: x @ w, batch, jax.random.key(0), params
  )
  with pytest.raises(TypeError, match="a mapping with `features` and `logits`"):
    udim().update(params, udim().init(params), params, value_fn=value_fn)
