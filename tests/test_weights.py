"""Reparameterised layers, modulated blocks and direct feedback alignment at work.

In the train step, under jit and vmap, on meshes and with local gradients, and what they answer
to wrong arguments.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from jaxrl import models, oracle, parallel, reduce, spec, train
from objectives.classification.cross_entropy import cross_entropy
from optimizers.dfa import dfa, dfa_alignment, dfa_feedback, dfa_network
from optimizers.orthonormal import modulated
from optimizers.reparameterized import reparameterized
from optimizers.weights.weight_compander import weight_compander
from optimizers.weights.weight_norm import weight_norm
from tests import tiers
from tests.properties import assert_close

pytestmark = tiers.unless_changed(
  "optimizers/weights/",
  "optimizers/reparameterized.py",
  "optimizers/orthonormal.py",
  "optimizers/dfa.py",
  "jaxrl/models.py",
)

KEY = jax.random.key(0)
SIZE, FEATURES, HIDDEN, CLASSES = 16, 6, 8, 3
BOTH = pytest.mark.parametrize(
  "by", [weight_norm(), weight_compander(learn=True)], ids=["wn", "wc"]
)


def batch():
  rng = np.random.default_rng(0)
  inputs = (1 + rng.normal(size=(SIZE, FEATURES))).astype(np.float32)
  labels = np.argmax(inputs[:, :CLASSES], axis=1).astype(np.int32)
  return {"inputs": inputs, "labels": labels, "mask": np.ones(SIZE, np.float32)}


class Normalized(nn.Module):
  """Weight normalization in every layer, and mean-only BatchNorm in the first."""

  @nn.compact
  def __call__(self, inputs, train):
    hidden = models.WeightNormalized(nn.Dense(HIDDEN, use_bias=False))(inputs)
    hidden = models.MeanOnlyBatchNorm(use_running_average=not train)(hidden)
    return models.WeightNormalized(nn.Dense(CLASSES, use_bias=False))(nn.relu(hidden))


class InCoordinates(nn.Module):
  """Every layer in other coordinates than its own."""

  by: object

  @nn.compact
  def __call__(self, inputs, train):
    hidden = models.Reparameterized(nn.Dense(HIDDEN), self.by)(inputs)
    return models.Reparameterized(nn.Dense(CLASSES), self.by)(nn.relu(hidden))


class Deep(nn.Module):
  """Blocks whose backward errors are modulated."""

  tau: float = 1.0

  @nn.compact
  def __call__(self, inputs, train):
    x = nn.Dense(HIDDEN)(inputs)
    for _ in range(3):
      dense = nn.Dense(HIDDEN, kernel_init=nn.initializers.normal(0.01))
      x = modulated(lambda x, dense=dense: jnp.tanh(dense(x)), tau=self.tau)(x)
    return nn.Dense(CLASSES)(x)


def dense_layer(params, x):
  return x @ params["kernel"] + params["bias"][None]


def tanh_layer(params, x):
  return jnp.tanh(dense_layer(params, x))


LAYERS = (tanh_layer, tanh_layer, dense_layer)


def layer_params(key):
  sizes = (FEATURES, HIDDEN, HIDDEN, CLASSES)
  draw = jax.nn.initializers.lecun_normal()
  keys = jax.random.split(key, len(LAYERS))
  shapes = zip(keys, sizes[:-1], sizes[1:], strict=True)
  return [{"kernel": draw(k, (i, o)), "bias": jnp.zeros(o)} for k, i, o in shapes]


def aligned_model():
  """Direct feedback alignment as a Model: the matrices are its state."""
  network = dfa_network(LAYERS)

  def init(key, inputs):
    del inputs
    first, second = jax.random.split(key)
    return layer_params(first), {"feedback": dfa_feedback(second, [HIDDEN] * 2, CLASSES)}

  def apply(params, state, inputs, key, train):
    del key, train
    return network(params, state["feedback"], inputs), state

  return models.Model(init, apply)


MODELS = {
  "normalized": models.from_flax(Normalized()),
  "wn": models.from_flax(InCoordinates(weight_norm())),
  "wc": models.from_flax(InCoordinates(weight_compander(learn=True))),
  "modulated": models.from_flax(Deep()),
  "dfa": aligned_model(),
}


def parts_of(name, axis_name=None):
  optimizer = optax.sgd(0.2)
  if axis_name is not None:
    mean = optax.stateless(lambda updates, _: jax.lax.pmean(updates, axis_name))
    optimizer = optax.chain(mean, optimizer)
  inputs = jnp.asarray(batch()["inputs"])
  return train.make_train(
    MODELS[name], oracle.lift(cross_entropy), optimizer, inputs, axis_name=axis_name
  )


def steps_on(name, layout, axis_name=None, steps=2):
  mesh = layout and parallel.make_mesh(layout)
  program = parallel.lay_out(parts_of(name, axis_name), mesh, axis_name, 0)
  state, losses = program.init(0), []
  for _ in range(steps):
    state, metrics = program.step(state, program.place(batch()))
    losses.append(float(metrics["loss"]))
  return losses, jax.device_get(state.params)


@functools.cache
def alone(name):
  return steps_on(name, None)


@pytest.mark.parametrize("name", MODELS)
def test_learns_a_batch(name):
  losses, _ = steps_on(name, None, steps=40)
  assert losses[-1] < 0.7 * losses[0]


@pytest.mark.full
@pytest.mark.parametrize("name", MODELS)
def test_on_a_mesh_as_on_one_device(name):
  assert_close(steps_on(name, "data=4,fsdp=2"), alone(name), 10)


# A worker's BatchNorm has the mean of its own examples.
@pytest.mark.full
@pytest.mark.parametrize("name", [name for name in MODELS if name != "normalized"])
def test_with_local_gradients_as_on_one_device(name):
  assert_close(steps_on(name, "data=8", ("data",)), alone(name), 10)


@BOTH
def test_a_layer_starts_at_its_own_weights(by):
  inputs = batch()["inputs"]
  plain, layer = nn.Dense(4), models.Reparameterized(nn.Dense(4), by)
  variables = layer.init(KEY, inputs)
  dense = by.weights(variables)["params"]["layer"]
  assert_close(layer.apply(variables, inputs), plain.apply({"params": dense}, inputs))
  kernel = nn.initializers.lecun_normal()(KEY, (FEATURES, 4))
  assert np.std(dense["kernel"]) == pytest.approx(np.std(kernel), rel=0.5)


@BOTH
def test_a_layer_and_an_optimizer_in_the_same_coordinates_agree(by):
  # The layer's own optimizer, and `reparameterized` on the plain layer.
  inputs, targets = batch()["inputs"], np.ones((SIZE, 4), np.float32)
  layer, plain = models.Reparameterized(nn.Dense(4), by), nn.Dense(4)
  raw = layer.init(KEY, inputs)
  params = {"params": by.weights(raw)["params"]["layer"]}
  inner = optax.adam(0.05)
  outer = reparameterized(inner, by)

  def loss(module):
    return lambda variables: jnp.mean((module.apply(variables, inputs) - targets) ** 2)

  @jax.jit
  def step(raw, state, params, outer_state):
    updates, state = inner.update(jax.grad(loss(layer))(raw), state)
    raw = optax.apply_updates(raw, updates)
    gradient = jax.grad(loss(plain))(params)
    updates, outer_state = outer.update(gradient, outer_state, params)
    return raw, state, optax.apply_updates(params, updates), outer_state

  carry = raw, inner.init(raw), params, outer.init(params)
  for _ in range(20):
    carry = step(*carry)
  assert_close(by.weights(carry[0])["params"]["layer"], carry[2]["params"], 10)


def test_units_without_weights_get_some():
  layer = nn.Dense(4, kernel_init=nn.initializers.zeros)
  optimizer = reparameterized(optax.sgd(0.1), weight_norm())
  params = layer.init(KEY, jnp.ones((1, FEATURES)))
  gradient = jax.tree.map(jnp.ones_like, params)
  updates, _ = optimizer.update(gradient, optimizer.init(params), params)
  assert np.all(np.isfinite(updates["params"]["kernel"]))
  assert np.all(np.asarray(updates["params"]["kernel"]) < 0)


def test_what_the_inner_optimizer_is_handed():
  seen = {}

  def update(updates, state, params=None, **extras):
    seen.update(extras, updates=updates, params=params)
    return updates, state

  inner = optax.GradientTransformationExtraArgs(lambda params: (), update)
  optimizer = reparameterized(inner, weight_norm())
  w = jnp.array([[3.0], [4.0]], jnp.bfloat16)

  def loss(w):
    assert w.dtype == jnp.bfloat16
    return jnp.sum(w.astype(jnp.float32) ** 2)

  gradient = jax.grad(loss)(w)
  optimizer.update(gradient, optimizer.init(w), w, value_fn=loss, grad=gradient, value=loss(w))
  assert seen["params"].scale.dtype == jnp.float32
  assert_close(seen["updates"], seen["grad"])
  assert_close(seen["value_fn"](seen["params"]), seen["value"])
  # The slope of g^2 by g, and none by the direction.
  assert_close(jax.grad(seen["value_fn"])(seen["params"]).scale, jnp.full((1, 1), 10.0))
  assert_close(seen["updates"].direction, jnp.zeros((2, 1)))


def test_a_single_example_has_no_deviation():
  layer = models.WeightNormalized(nn.Dense(4, use_bias=False), scale=0.5)
  params = layer.init(KEY, jnp.ones((1, FEATURES)))["params"]
  assert_close((params["scale"], params["bias"]), (jnp.full(4, 0.5), jnp.zeros(4)))


def test_a_spec_trains_any_model_in_other_coordinates():
  optimizer = spec.optimizer(
    "clip_by_global_norm(1.0) | reparameterized(adam(0.05), weight_norm())"
  )
  model = models.from_flax(models.Mlp(CLASSES, widths=(HIDDEN,)))
  data = batch()
  inputs = jnp.asarray(data["inputs"][:1])
  parts = train.make_train(model, oracle.lift(cross_entropy), optimizer, inputs)
  state, step = jax.jit(parts.init)(0), jax.jit(parts.step)
  losses = []
  for _ in range(15):
    state, metrics = step(state, data)
    losses.append(float(metrics["loss"]))
  assert losses[-1] < losses[0]


# modulated


def errors(tau):
  """The gradient of a deep network by its inputs."""
  weights = 0.3 * jax.random.normal(jax.random.key(1), (4, HIDDEN, HIDDEN))

  def loss(x):
    for w in weights:
      x = modulated(lambda x, w=w: jnp.tanh(x @ w), tau=tau)(x)
    return jnp.sum(x**2)

  return jax.grad(loss)


def test_modulated_under_jit_and_vmap():
  inputs = jax.random.normal(KEY, (5, SIZE, HIDDEN))
  gradient = jax.jit(errors(1.0))
  found = jax.jit(jax.vmap(errors(1.0)))(inputs)
  assert_close(found, jnp.stack([gradient(x) for x in inputs]))


def test_modulated_errors_stay_of_one_size_where_others_vanish():
  inputs = jax.random.normal(KEY, (SIZE, HIDDEN))
  plain, kept = (float(jnp.linalg.norm(jax.jit(errors(tau))(inputs))) for tau in (1e9, 1.0))
  assert kept > 3 * plain


def test_modulated_measures_the_whole_batch_of_all_workers():
  inputs = jax.random.normal(KEY, (8, 2, HIDDEN))

  def on_worker(x):
    with reduce.over("data"):
      return errors(1.0)(x[0])[None]

  mesh, rows = parallel.make_mesh("data=8"), PartitionSpec("data")
  sharded = jax.shard_map(on_worker, mesh=mesh, in_specs=rows, out_specs=rows)
  found = jax.jit(sharded)(inputs)
  expected = jax.jit(errors(1.0))(inputs.reshape(16, HIDDEN)).reshape(inputs.shape)
  assert_close(found, expected)


# dfa


def dfa_problem():
  data = batch()
  params = layer_params(KEY)
  feedback = dfa_feedback(jax.random.key(1), [HIDDEN] * 2, CLASSES)

  def loss(logits, labels):
    return jnp.mean(cross_entropy(logits, labels))

  return loss, (params, feedback, data["inputs"], data["labels"])


def test_dfa_under_jit_and_vmap():
  loss, (params, feedback, *columns) = dfa_problem()
  value_and_grad = dfa(LAYERS, loss)
  compiled = jax.jit(value_and_grad)
  expected = value_and_grad(params, feedback, *columns)
  assert_close(compiled(params, feedback, *columns), expected)
  several = [dfa_feedback(jax.random.key(seed), [HIDDEN] * 2, CLASSES) for seed in range(3)]
  stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *several)
  over = jax.vmap(value_and_grad, in_axes=(None, 0, None, None))
  _, found = jax.jit(over)(params, stacked, *columns)
  one_by_one = [compiled(params, each, *columns)[1] for each in several]
  assert_close(found, jax.tree.map(lambda *leaves: jnp.stack(leaves), *one_by_one))


def test_dfa_aligns_while_it_trains():
  loss, (params, feedback, *columns) = dfa_problem()
  value_and_grad, alignment = jax.jit(dfa(LAYERS, loss)), jax.jit(dfa_alignment(LAYERS, loss))
  before = alignment(params, feedback, *columns)
  for _ in range(100):
    _, gradient = value_and_grad(params, feedback, *columns)
    params = jax.tree.map(lambda w, g: w - 0.3 * g, params, gradient)
  after = alignment(params, feedback, *columns)
  assert before.shape == after.shape == (2, SIZE)
  assert np.all(after.mean(axis=1) > np.maximum(before.mean(axis=1) + 0.1, 0))


def test_dfa_in_bfloat16():
  loss, (params, feedback, inputs, labels) = dfa_problem()
  value_and_grad = jax.jit(dfa(LAYERS, loss))
  exact = value_and_grad(params, feedback, inputs, labels)[1]
  half = functools.partial(jax.tree.map, lambda x: jnp.asarray(x, jnp.bfloat16))
  _, found = value_and_grad(half(params), feedback, half(inputs), labels)
  for low, high in zip(jax.tree.leaves(found), jax.tree.leaves(exact), strict=True):
    assert low.dtype == jnp.bfloat16
    np.testing.assert_allclose(low.astype(jnp.float32), high, rtol=0.1, atol=0.02)


def test_no_error_gives_no_alignment_and_no_gradient():
  _, (params, feedback, *columns) = dfa_problem()

  def constant(logits, labels):
    del labels
    return 0.0 * jnp.sum(logits)

  assert not np.any(dfa_alignment(LAYERS, constant)(params, feedback, *columns))
  gradients = jax.tree.leaves(dfa(LAYERS, constant)(params, feedback, *columns)[1])
  assert not any(np.any(gradient) for gradient in gradients)


# Wrong arguments


def dfa_with(params=None, feedback=None, function=dfa):
  loss, (usual, matrices, *columns) = dfa_problem()
  arguments = usual if params is None else params, matrices if feedback is None else feedback
  return function(LAYERS, loss)(*arguments, *columns)


@pytest.mark.parametrize("function", [dfa, dfa_alignment])
@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ({"feedback": []}, "3 layers need as many params, and one matrix less, got 3 params and 0"),
    ({"params": []}, "got 0 params and 2 matrices"),
    ({"feedback": [jnp.ones((CLASSES, 5))] * 2}, r"feedback\[0\] must be of shape \[outputs, 8\]"),
    ({"feedback": [jnp.ones((2, HIDDEN))] * 2}, r"feedback\[0\] must have 3 rows, got 2"),
  ],
)
def test_wrong_feedback_is_named(function, arguments, message):
  with pytest.raises(ValueError, match=message):
    dfa_with(function=function, **arguments)


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (lambda: dfa([], jnp.sum), "the number of layers must be a whole number of at least 1, got 0"),
    (lambda: dfa_feedback(KEY, [0], 3), "a size must be a whole number of at least 1, got 0"),
    (lambda: dfa_feedback(KEY, [4], 0), "num_outputs must be a whole number of at least 1"),
    (lambda: modulated(jnp.tanh, tau=0.5), "tau must be at least 1, got 0.5"),
    (lambda: weight_norm(axis=2).init(jnp.ones((2, 3))), r"axis must be one of a kernel of shape"),
    (lambda: models.WeightNormalized(nn.Dense(3)), "layer must have use_bias=False"),
  ],
)
def test_wrong_arguments_are_named(call, message):
  with pytest.raises(ValueError, match=message):
    call()
