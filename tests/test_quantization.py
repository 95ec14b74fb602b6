"""Quantised training at work: in the train step, on meshes, in parts, by workers and seeds."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrl import data, models, oracle, parallel, train
from objectives.classification.cross_entropy import cross_entropy
from optimizers.cga import cga
from optimizers.gaqat import gaqat
from optimizers.int4_gradients import Interval, int4_gradients, quantized_cotangents
from optimizers.reparameterized import reparameterized
from optimizers.track_oscillation import track_oscillation
from optimizers.weights.lsq import lsq
from optimizers.weights.qk_reparam import qk_reparam
from optimizers.weights.statsq import statsq
from optimizers.weights.weight_norm import weight_norm
from scripts.train import Config, assemble
from tests.properties import assert_close, assert_identical, differs

SIZE, FEATURES, HIDDEN, CLASSES = 16, 6, 8, 3


def batch():
  rng = np.random.default_rng(0)
  inputs = (1 + rng.normal(size=(SIZE, FEATURES))).astype(np.float32)
  labels = np.argmax(inputs[:, :CLASSES], axis=1).astype(np.int32)
  return {"inputs": inputs, "labels": labels, "mask": np.ones(SIZE, np.float32)}


class Net(nn.Module):
  """Two layers, the cotangents of the first rounded to the nearest of few levels."""

  start: str = "one"

  @nn.compact
  def __call__(self, inputs, train):
    by = quantized_cotangents(bits=3, alpha=0.5, init=self.start, rounding="nearest")
    hidden = models.QuantizedCotangents(nn.Dense(HIDDEN), by)(inputs)
    return nn.Dense(CLASSES)(nn.relu(hidden))


@functools.cache
def steps_on(layout, axis_name=None, start="one", steps=4):
  """The gamma and the parameters after each step."""
  inner = optax.sgd(0.2)
  if axis_name is not None:
    mean = optax.stateless(lambda updates, _: jax.lax.pmean(updates, axis_name))
    inner = optax.chain(mean, inner)
  parts = train.make_train(
    models.from_flax(Net(start)),
    oracle.lift(cross_entropy),
    int4_gradients(inner, 0.1, axis_name=axis_name),
    jnp.asarray(batch()["inputs"]),
    axis_name=axis_name,
  )
  mesh = layout and parallel.make_mesh(layout)
  program = parallel.lay_out(parts, mesh, axis_name, 0)
  state = program.init(0)
  gammas, params = [], [jax.device_get(state.params)]
  for _ in range(steps):
    state, metrics = program.step(state, program.place(batch()))
    gammas.append(float(metrics["int4_gradients/gamma"]))
    params.append(jax.device_get(state.params))
  return gammas, params


def test_intervals_move_and_the_first_pass_only_finds_them():
  gammas, (before, first, *_, last) = steps_on(None, start="official")
  assert 0 < gammas[0] < 1
  assert len(set(gammas)) > 1
  for name in ("Dense_0", "Dense_1"):
    assert_identical(first[name], before[name])
    assert differs(last[name], before[name])


@pytest.mark.full
def test_intervals_on_a_mesh_as_on_one_device():
  assert_close(steps_on("data=4,fsdp=2", start="official"), steps_on(None, start="official"), 10)


@pytest.mark.full
def test_intervals_with_local_gradients_as_on_one_device():
  assert_close(steps_on("data=8", ("data",)), steps_on(None), 10)


def test_intervals_with_micro_batches_that_are_alike():
  # Equal parts have one largest magnitude, and clip the same share.
  rows = {name: np.concatenate([x[:4]] * 4) for name, x in batch().items()}
  kept = optax.GradientTransformation(optax.tree.zeros_like, lambda g, state, params: (g, g))

  def gradient(parts):
    made = train.make_train(
      models.from_flax(Net()),
      oracle.lift(cross_entropy),
      kept,
      jnp.asarray(rows["inputs"]),
      micro_batches=parts,
    )
    after, _ = jax.jit(lambda: made.step(made.init(0), rows))()
    return after.optimizer

  together, apart = gradient(1), gradient(4)
  one, other = (tree["QuantizedCotangents_0"]["interval"] for tree in (together, apart))
  assert_close(one.gamma / one.weight, other.gamma / other.weight, 10)
  assert_close(together["Dense_1"], apart["Dense_1"], 10)


def test_seeds_have_intervals_of_their_own():
  by = quantized_cotangents(alpha=0.3)
  cotangents = jnp.asarray(np.random.default_rng(0).laplace(size=(3, 200)), jnp.float32)

  def found(cotangent, gamma):
    interval = Interval(gamma, jnp.zeros([]))
    _, pull_back = jax.vjp(lambda x, i: by.apply(x, i, jax.random.key(0)), cotangent, interval)
    return pull_back(cotangent)

  gammas = jnp.array([0.0, 0.5, 0.0])
  together = jax.jit(jax.vmap(found))(cotangents, gammas)
  for i in range(3):
    own = jax.jit(found)(cotangents[i], gammas[i])
    assert_close(jax.tree.map(lambda x, i=i: x[i], together), own, 10)


def test_intervals_take_any_cotangent():
  by = quantized_cotangents()
  run = jax.jit(lambda g, i: jax.vjp(lambda x: by.apply(x, i, jax.random.key(0)), g)[1](g)[0])
  for gamma in (0.0, 0.5):
    interval = by.init()._replace(gamma=jnp.array(gamma))
    for scale in (0.0, 1e-30, 1e30):
      rounded = run(scale * jnp.array([1.0, -0.5]), interval)
      assert np.all(np.isfinite(rounded))
      assert np.all(np.abs(rounded) <= 1.01 * scale)
    assert run(jnp.zeros((0,)), interval).shape == (0,)
    half = run(jnp.array([1.0, -0.5], jnp.bfloat16), interval)
    assert half.dtype == jnp.bfloat16


def test_the_command_line_trains_with_gradients_of_four_bits():
  dataset = data.load("digits")
  rows = next(data.batches(dataset.splits["train"], 8, seed=0))
  config = Config(model="resnet_int4", optimizer="int4_gradients(sgd(0.1, momentum=0.9))")
  parts = assemble(config, dataset, rows, axis_name=None)
  state = jax.eval_shape(parts.init, 0)
  after, metrics = jax.eval_shape(parts.step, state, rows)
  assert jax.tree.structure(after) == jax.tree.structure(state)
  assert "int4_gradients/gamma" in metrics
  config = Config(model="resnet_int4", optimizer="adam(0.1)")
  with pytest.raises(ValueError, match="resnet_int4 trains by int4_gradients"):
    assemble(config, dataset, rows, axis_name=None)


class Rounded(nn.Module):
  """A layer whose parameters are latent weights, and attention that rounds its matrix."""

  @nn.compact
  def __call__(self, inputs, train):
    tokens = models.Reparameterized(nn.Dense(HIDDEN), statsq(bits=2))(inputs)[:, None]
    tokens = jnp.concatenate([tokens, 2 * tokens], axis=1)
    seen = models.QkAttention(2, qk_reparam)(tokens)
    return models.Reparameterized(nn.Dense(CLASSES), lsq(bits=3))(seen.mean(axis=1))


def test_rounded_layers_learn():
  model = models.from_flax(Rounded())
  optimizer = optax.adam(0.02)
  parts = train.make_train(model, oracle.lift(cross_entropy), optimizer, batch()["inputs"])
  state, step = jax.jit(parts.init)(0), jax.jit(parts.step)
  losses = []
  for _ in range(40):
    state, metrics = step(state, batch())
    losses.append(float(metrics["loss"]))
  assert losses[-1] < 0.7 * losses[0]


def test_attention_needs_heads_that_divide_the_width():
  with pytest.raises(ValueError, match="heads must divide the width 8, got 3"):
    models.QkAttention(3, qk_reparam).init(jax.random.key(0), jnp.zeros((1, 2, 8)))


@pytest.mark.parametrize(
  ("make", "error", "message"),
  [
    (lambda: quantized_cotangents(bits=1), ValueError, "bits must be a whole number of at least 2"),
    (lambda: quantized_cotangents(alpha=0), ValueError, "alpha must be above 0, got 0"),
    (lambda: quantized_cotangents(alpha=2), ValueError, r"alpha must be in \[0, 1\], got 2"),
    (lambda: quantized_cotangents(init="two"), ValueError, "init must be one of"),
    (lambda: quantized_cotangents(rounding="up"), ValueError, "rounding must be one of"),
    (lambda: statsq(axis=2).weights(jnp.ones((2, 2))), ValueError, "axis must be one of a kernel"),
    (lambda: lsq(axis=-3).init(jnp.ones((2, 2))), ValueError, "axis must be one of a kernel"),
    (lambda: qk_reparam(jnp.ones((2, 1, 1)), jnp.ones((2, 1, 1)), 0), ValueError, "bits must be"),
    (lambda: qk_reparam(jnp.ones(2), jnp.ones(2)), AssertionError, "rank"),
    (lambda: track_oscillation(weight_norm()), ValueError, "by must have levels"),
  ],
)
def test_wrong_arguments(make, error, message):
  with pytest.raises(error, match=message):
    make()


@pytest.mark.parametrize(
  "optimizer",
  [
    cga(optax.sgd(0.1)),
    gaqat(),
    int4_gradients(optax.sgd(0.1)),
    track_oscillation(statsq()),
    reparameterized(optax.sgd(0.1), statsq()),
  ],
)
def test_needs_params(optimizer):
  params = jnp.ones((2, 2))
  with pytest.raises(ValueError, match="needs the parameters"):
    optimizer.update(params, optimizer.init(params), value_fn=jnp.sum)
