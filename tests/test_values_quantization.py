"""Values of quantised training: official code, NumPy, and what cards prove.

Of weights (statsq, lsq, cga, track_oscillation, qk_reparam, gaqat) and of gradients.
"""

import functools
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrl import models
from optimizers.cga import cga
from optimizers.gaqat import gaqat
from optimizers.int4_gradients import Interval, int4_gradients, quantized_cotangents
from optimizers.reparameterized import reparameterized
from optimizers.track_oscillation import track_oscillation
from optimizers.weights.lsq import lsq
from optimizers.weights.qk_reparam import qk_reparam
from optimizers.weights.statsq import statsq
from tests import values

RNG = np.random.default_rng(0)
KEY = jax.random.key(0)


def close(actual, expected, tolerance=1e-5):
  def compare(a, e):
    np.testing.assert_allclose(a, e, rtol=tolerance, atol=tolerance)

  if isinstance(expected, dict):
    jax.tree.map(compare, actual, expected)
  else:
    compare(actual, expected)


def regression(golden, by):
  """The loss of the golden two-layer network as a function of coordinates."""
  inputs, targets = jnp.asarray(golden["inputs"]), jnp.asarray(golden["targets"])

  def loss(raw):
    w = by.weights(raw)
    return jnp.mean((jax.nn.relu(inputs @ w["first"]) @ w["second"] - targets) ** 2)

  return loss


def trained(loss, optimizer, params, steps):
  """Parameters, state and the losses before each step."""

  @jax.jit
  def step(params, state):
    value, gradient = jax.value_and_grad(loss)(params)
    updates, state = optimizer.update(gradient, state, params)
    return optax.apply_updates(params, updates), state, value

  state, losses = optimizer.init(params), []
  for _ in range(steps):
    params, state, value = step(params, state)
    losses.append(float(value))
  return params, state, losses


# statsq and cga


def test_cga_and_statsq_are_the_official_ones_for_24_steps_each():
  file = values.load("statsq")
  golden, steps = file["statsq"], file["steps"]
  by = statsq(bits=2, axis=-1)
  with jax.enable_x64(True):
    adamw = optax.adamw(file["learning_rate"], weight_decay=file["weight_decay"])
    loss = regression(golden, by)
    raw, _, losses = trained(loss, adamw, jax.tree.map(jnp.asarray, golden["start"]), steps)
    close(losses, golden["losses"][:steps], 1e-9)
    close(raw, golden["middle"], 1e-9)
    annealed = cga(adamw, bits=2, boundary=file["boundary"])
    end, state, losses = trained(loss, annealed, raw, steps)
    close(losses, golden["losses"][steps:], 1e-9)
    close(end, golden["end"], 1e-9)
    close(by.weights(end), golden["rounded"], 1e-9)
    close(state.metrics["frozen"], golden["frozen"][-1], 1e-6)
  for name, kernel in end.items():  # to the bit, under decay and momentum
    assert np.mean(kernel == raw[name]) > 0.6


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_statsq_gives_each_unit_its_levels(bits):
  kernel = jnp.asarray(3 * RNG.normal(size=(5, 400, 3)), jnp.float32)
  weights = np.asarray(statsq(bits).weights(kernel)).reshape(-1, 3)
  scale = 2 * np.abs(kernel).mean(axis=(0, 1))
  half = 2 ** (bits - 1)
  for unit, s in zip(weights.T, scale, strict=True):
    levels = np.unique(unit)
    assert len(levels) == 2**bits
    close(levels, s * (np.arange(-half, half) + 0.5) / half)


def test_statsq_is_equivariant_accurate_and_straight_through():
  kernel = jnp.asarray(RNG.normal(size=(50, 4)), jnp.float32)
  gradient = jnp.asarray(RNG.normal(size=(50, 4)), jnp.float32)

  @jax.jit
  def six_bits(kernel):
    weights, pull_back = jax.vjp(statsq(bits=6).weights, kernel)
    return weights, pull_back(gradient)[0]

  weights, back = six_bits(kernel)
  scale = 2 * np.abs(kernel).mean(axis=0)
  error = np.abs(weights - kernel) / scale
  assert np.max(error[np.abs(kernel) < scale]) <= 0.5 / 2**5 + 1e-6
  close(six_bits(8 * kernel)[0], 8 * np.asarray(weights))
  close(back, gradient, 0)
  rows = statsq(bits=3, axis=0).weights(kernel)
  close(rows, statsq(bits=3).weights(kernel.T).T, 0)
  close(statsq(bits=2).weights(jnp.zeros((3, 2))), np.zeros((3, 2)), 0)


def test_statsq_trains_any_parameters_on_levels():
  optimizer = reparameterized(optax.adam(0.05), statsq(bits=2))
  goal = jnp.asarray(RNG.normal(size=(16, 2)), jnp.float32)
  params = {"kernel": jnp.ones((16, 2)), "bias": jnp.ones(2)}

  def loss(params):
    return jnp.sum((params["kernel"] - goal) ** 2) + jnp.sum(params["bias"] ** 2)

  params, state, losses = trained(loss, optimizer, params, 40)
  assert losses[-1] < losses[0] / 2
  assert all(len(np.unique(np.round(unit, 5))) <= 4 for unit in np.asarray(params["kernel"]).T)
  assert len(np.unique(np.asarray(state.raw["kernel"]))) > 8


# lsq and track_oscillation


def test_track_oscillation_and_lsq_are_the_official_ones_for_24_steps():
  file = values.load("statsq")
  golden = {**file["statsq"], **file["lsq"]}
  by = lsq(bits=3, axis=-1)
  with jax.enable_x64(True):
    start = by.init(jax.tree.map(jnp.asarray, golden["start"]))
    for name, scales in golden["scales"].items():
      close(start[name].scale[0], scales[0], 1e-9)
    optimizer = optax.chain(optax.sgd(0.5), track_oscillation(by, momentum=0.05))
    end, state, losses = trained(regression(golden, by), optimizer, start, file["steps"])
    close(losses, golden["losses"], 1e-9)
    for name, node in end.items():
      close(node.raw, golden["end"][name], 1e-9)
      close(node.scale[0], golden["scales"][name][-1], 1e-9)
  frequency = dict(zip(("first", "second"), state[1].frequency, strict=True))
  close(frequency, golden["frequency"], 1e-6)
  every = np.concatenate([f.ravel() for f in golden["frequency"].values()])
  close(state[1].metrics["frequency"], every.mean())
  close(state[1].metrics["oscillating"], np.mean(every > 0.005))


def test_lsq_has_one_scale_for_a_kernel_and_the_papers_gradient():
  v = RNG.normal(size=(3, 4, 5)).astype(np.float32)
  by = lsq(bits=3)
  raw = by.init(jnp.asarray(v))
  close(raw.scale, 2 * np.abs(v).mean() / 3**0.5)
  raw = raw._replace(scale=jnp.array(0.3))
  weights, pull_back = jax.vjp(by.weights, raw)
  place, gradient = v / np.float32(0.3), RNG.normal(size=v.shape).astype(np.float32)
  inside = (place > -4) & (place < 3)
  close(weights, 0.3 * np.clip(np.round(place), -4, 3))
  (found,) = pull_back(jnp.asarray(gradient))
  close(found.raw, gradient * inside)
  by_scale = np.where(inside, np.round(place) - place, np.clip(place, -4, 3))
  close(found.scale, np.sum(gradient * by_scale) / np.sqrt(v.size * 3), 1e-4)
  assert not np.all(inside)


# qk_reparam


def test_qk_reparam_is_the_official_one_for_24_steps():
  file = values.load("statsq")
  golden = file["qk_reparam"]
  heads, width = int(golden["heads"]), golden["inputs"].shape[-1]
  size = width // heads
  layer = models.QkAttention(heads, functools.partial(qk_reparam, bits=2))

  def ours(theirs):
    theirs = {name: jnp.asarray(array) for name, array in theirs.items()}
    return {
      "query": theirs["q.weight"].T.reshape(width, heads, size),
      "key": theirs["k.weight"].T.reshape(width, heads, size),
      "value": {
        "kernel": theirs["v.weight"].T.reshape(width, heads, size),
        "bias": theirs["v.bias"].reshape(heads, size),
      },
      "out": {
        "kernel": theirs["proj.weight"].T.reshape(heads, size, width),
        "bias": theirs["proj.bias"],
      },
    }

  with jax.enable_x64(True):
    inputs, targets = jnp.asarray(golden["inputs"]), jnp.asarray(golden["targets"])

    def loss(params):
      return jnp.mean((layer.apply({"params": params}, inputs) - targets) ** 2)

    start, end = ours(golden["start"]), ours(golden["end"])
    params, _, losses = trained(loss, optax.sgd(0.5), start, file["steps"])
    close(losses, golden["losses"], 1e-6)  # theirs and ours have softmax in float32
    close(params, end, 1e-5)


def test_qk_reparam_without_rounding_is_attention():
  x = jnp.asarray(RNG.normal(size=(2, 5, 6)), jnp.float32)
  mask = nn.make_causal_mask(jnp.zeros((2, 5)))
  layer = models.QkAttention(2, functools.partial(jnp.einsum, "chd,ehd->hce"))
  params = jax.jit(layer.init)(KEY, x)["params"]
  nothing = jnp.zeros((2, 3))
  theirs = {
    "query": {"kernel": params["query"], "bias": nothing},
    "key": {"kernel": params["key"], "bias": nothing},
    "value": params["value"],
    "out": params["out"],
  }
  attention = nn.MultiHeadDotProductAttention(2)
  expected = jax.jit(lambda p: attention.apply({"params": p}, x, mask=mask))(theirs)
  close(jax.jit(lambda p: layer.apply({"params": p}, x, mask))(params), expected)


# int4_gradients


def conv(kernel, x):
  numbers = ("NHWC", "HWIO", "NHWC")
  return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=numbers)


def test_int4_gradients_are_the_official_ones_for_40_steps():
  golden = values.load("int4_gradients")
  by = quantized_cotangents(bits=4, alpha=1e-3, rounding="nearest")
  with jax.enable_x64(True):
    inputs, targets = jnp.asarray(golden["inputs"]), jnp.asarray(golden["targets"])

    def loss(params):
      x = inputs
      for name in ("first", "second"):
        x = jax.nn.relu(x) if name == "second" else x
        x = by.apply(conv(params["kernels"][name], x), params["intervals"][name], KEY)
      return jnp.mean(optax.huber_loss(x, targets))

    inner = optax.sgd(golden["learning_rate"], momentum=golden["momentum"])
    optimizer = int4_gradients(inner)
    start = jax.tree.map(jnp.asarray, golden["start"])
    params = {"kernels": start, "intervals": {"first": by.init(), "second": by.init()}}
    step, state, gammas, losses = jax.jit(optimizer.update), optimizer.init(params), [], []
    value_and_grad = jax.jit(jax.value_and_grad(loss))
    for _ in golden["losses"]:
      value, gradient = value_and_grad(params)
      updates, state = step(gradient, state, params)
      params = optax.apply_updates(params, updates)
      gammas.append([float(i.gamma) for i in params["intervals"].values()])
      losses.append(float(value))
    close(gammas, golden["gammas"], 1e-6)
    close(losses, golden["losses"], 1e-7)
    close(params["kernels"], golden["end"], 1e-6)


def rounded(gradient, gamma, key=KEY, **options):
  """What comes back of a gradient, and the interval's own gradient."""
  by = quantized_cotangents(init="one", **options)
  interval = by.init()._replace(gamma=jnp.asarray(gamma, jnp.float32))
  return jax.vjp(lambda x, i: by.apply(x, i, key), gradient, interval)[1](gradient)


def test_int4_gradients_round_as_the_official_ones():
  golden = values.load("int4_gradients")
  gradient = jnp.asarray(golden["gradient"], jnp.float32)
  for case in golden["rounded"]:
    found, _ = rounded(gradient, case["gamma"], bits=int(case["bits"]), rounding="nearest")
    close(found, case["rounded"])


def test_int4_gradients_are_clipped_in_the_mean_and_near_in_each_draw():
  gradient = jnp.asarray(RNG.laplace(size=60), jnp.float32)
  gamma, draws = 0.6, 3000
  keys = jax.random.split(KEY, draws)
  found = np.asarray(jax.jit(jax.vmap(lambda key: rounded(gradient, gamma, key)[0]))(keys))
  c = gamma * np.abs(gradient).max()
  s, clipped = 2 * c / 14, np.clip(gradient, -c, c)
  assert np.max(np.abs(found - clipped)) <= s * (1 + 1e-5)
  codes = (found + c) / s
  close(codes, np.round(codes), 1e-4)
  assert len(np.unique(np.round(codes))) == 15
  close(found.mean(axis=0), clipped, 5 * s / 2 / draws**0.5)
  assert np.max(np.abs(clipped)) < np.max(np.abs(gradient))


def test_int4_gradients_report_what_was_clipped():
  gradient = jnp.asarray(RNG.laplace(size=500), jnp.float32)
  for bits, alpha in ((4, 0.1), (3, 1.0)):
    _, signal = rounded(gradient, 0.5, bits=bits, alpha=alpha)
    share = np.mean(np.abs(gradient) > 0.5 * np.abs(gradient).max())
    close(signal.gamma / signal.weight, share - alpha / (2**bits - 1))


def test_int4_gradients_begin_where_the_official_search_ends():
  gradient = np.random.default_rng(0).normal(size=(8, 10, 10, 4)).astype(np.float32)
  by = quantized_cotangents(alpha=1e-3)

  @jax.jit
  def signal_of(gradient):
    return jax.vjp(lambda i: by.apply(gradient, i, KEY), by.init())[1](gradient)[0]

  signal = signal_of(gradient)
  gamma, mean, largest = 1.0, 0.0, np.abs(gradient).max()
  while mean <= 1e-3 / 15:
    mean = 0.999 * mean + 0.001 * np.mean(np.abs(gradient) > gamma * largest)
    gamma += 0.001 * np.sign(mean - 1e-3 / 15)
  close(signal.gamma / signal.weight, gamma, 1e-4)
  assert gamma < 0.9
  nothing = signal_of(np.zeros_like(gradient))
  assert float(nothing.gamma) == float(nothing.weight) == 0


def test_int4_gradients_move_by_sign_within_bounds():
  optimizer = int4_gradients(optax.sgd(1.0), step=lambda count: 0.1 * (count + 1))
  gammas = jnp.array([1.0, 0.95, 0.5, 0.5, 0.05, 0.0])
  signals = jnp.array([0.2, 0.3, -2.0, 0.0, -1.0, 0.7])
  params = [Interval(g, jnp.zeros([])) for g in gammas] + [jnp.ones(2)]
  gradient = [Interval(0.25 * s, jnp.array(0.25)) for s in signals] + [jnp.ones(2)]
  state = optimizer.init(params)
  updates, state = optimizer.update(gradient, state, params)
  moved = [g.gamma + u.gamma for g, u in zip(params[:-1], updates[:-1], strict=True)]
  close(moved, [1.0, 1.0, 0.4, 0.5, 1e-3, 0.7])
  close(updates[-1], np.zeros(2))  # a gamma was found: nothing trains
  close(state.metrics["gamma"], np.mean(moved))
  params = optax.apply_updates(params, updates)
  unseen = jax.tree.map(jnp.zeros_like, gradient[:-1]) + gradient[-1:]
  updates, state = optimizer.update(unseen, state, params)
  close([u.gamma for u in updates[:-1]], np.zeros(6))
  close(updates[-1], -np.ones(2))
  updates, _ = optimizer.update(gradient, state, params)
  close(updates[2].gamma, -0.3)


# gaqat


def gaqat_in_numpy(v, s, curvature, goal, settings, steps):
  """SAM on a quadratic of three-bit weights, its task gradients of s left out by turns."""
  rate, rho, window, threshold, freeze = settings
  root = np.sqrt(v.size * 3)

  def gradient(v, s):
    place = v / s
    inside = (place >= -4) & (place <= 3)
    by_w = curvature * (s * np.round(np.clip(place, -4, 3)) - goal)
    by_s = np.where(inside, np.round(place) - place, np.clip(place, -4, 3))
    return by_w * inside, np.sum(by_w * by_s) / root

  frozen, signs, log = False, [], []
  for t in range(steps):
    g_v, g_s = gradient(v, s)
    up_v, up_s = gradient(v + rho * g_v / np.linalg.norm(g_v), s)
    smooth = up_s - g_s
    step = {"task": smooth, "smooth": g_s}[freeze] if frozen else up_s
    v, s = v - rate * up_v, s - rate * step
    log.append((v, s, frozen))
    signs.append(np.sign(g_s))
    if (t + 1) % window == 0:
      recent = signs[-window:]
      flips = sum(a * b < 0 for a, b in itertools.pairwise(recent))
      frozen = flips / (window - 1) < threshold
  return log


@pytest.mark.parametrize("freeze", ["task", "smooth"])
def test_gaqat_in_numpy_for_40_steps(freeze):
  rng = np.random.default_rng(32)  # one that freezes and unfreezes
  v, goal = rng.normal(size=(6, 4)), rng.normal(size=(6, 4))
  curvature = np.exp(rng.normal(size=(6, 4)))
  rate, rho, window, threshold = 0.2, 0.5, 6, 0.5
  with jax.enable_x64(True):
    by = lsq(bits=3)
    raw = by.init(jnp.asarray(v))
    log = gaqat_in_numpy(
      v, float(raw.scale), curvature, goal, (rate, rho, window, threshold, freeze), 40
    )
    optimizer = optax.chain(
      gaqat(rho, window=window, threshold=threshold, freeze=freeze), optax.sgd(rate)
    )

    def loss(raw):
      return jnp.sum(curvature * (by.weights(raw) - goal) ** 2) / 2

    @jax.jit
    def step(raw, state):
      updates, state = optimizer.update(jax.grad(loss)(raw), state, raw, value_fn=loss)
      return optax.apply_updates(raw, updates), state

    state, frozen = optimizer.init(raw), []
    for expected_v, expected_s, expected_frozen in log:
      raw, state = step(raw, state)
      close(raw.raw, expected_v, 1e-7)
      close(raw.scale, expected_s, 1e-7)
      frozen.append(bool(state[0].metrics["frozen"]))
      assert frozen[-1] == expected_frozen
  assert {True, False} == set(frozen[window:])


@pytest.mark.parametrize(("signs", "disorder"), [([1, 1], 0.0), ([1, -1], 1.0)])
def test_gaqat_knows_order_from_disorder(signs, disorder):
  optimizer = gaqat(rho=0.0, window=4, threshold=0.5)
  raw = lsq(bits=2).init(jnp.ones((2, 2)))

  @jax.jit
  def update(sign, state):
    gradient = jax.tree.map(lambda x: jnp.full_like(x, sign), raw)
    return optimizer.update(
      gradient, state, raw, value_fn=lambda raw: jnp.sum(raw.scale) + jnp.sum(raw.raw)
    )

  state = optimizer.init(raw)
  for t in range(5):
    updates, state = update(signs[t % 2], state)
  assert float(state.metrics["disorder"]) == disorder
  assert bool(state.metrics["frozen"]) == (disorder == 0)
  close(updates.scale, 0.0 if disorder == 0 else 1.0)  # g_sm = 1 - g
