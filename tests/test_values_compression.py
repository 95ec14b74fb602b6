"""Values of error feedback: EF14, the variants of EF21, EF21-W and EControl."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrl import parallel
from optimizers.compressors.natural_rounding import natural_rounding
from optimizers.compressors.no_compression import no_compression
from optimizers.compressors.top_k import top_k
from optimizers.econtrol import econtrol, econtrol_theory_eta
from optimizers.ef14 import ef14
from optimizers.ef21 import ef21, ef21_stepsize
from optimizers.ef21_w import ef21_w
from tests import values
from tests.test_ef21 import worker_axes
from tests.test_values_distributed import mean_loss, points_of, slope_and_bowl

on_workers = {"axis_name": "data"}


def gradient_of(golden):
  """The gradient of worker i of the goldens' least squares, for NumPy and jax."""
  matrices, targets, penalty = golden["matrices"], golden["targets"], golden["penalty"]

  def gradient(x, worker):
    a, b = matrices[worker], targets[worker]
    return a.T @ (a @ x - b) / len(a) + 2 * penalty * x

  return gradient


def ours(optimizer, golden, steps=41):
  """Our points on the goldens' problem in float64, after each step."""
  with jax.enable_x64(True):
    arrays = {name: jnp.asarray(golden[name]) for name in ("matrices", "targets")}
    start = jnp.asarray(golden["start"])
    gradient = gradient_of({**golden, **arrays})
    points = points_of(optimizer(), gradient, start, len(golden["matrices"]), steps)
  assert points.dtype == np.float64
  return points[1:]


def assert_equal_to_twelve_digits(actual, expected):
  np.testing.assert_allclose(actual, expected, rtol=1e-12, atol=1e-13)


def test_ef14_is_the_official_one():
  golden = values.load("ef14")
  compressor, step = top_k(golden["entries"]), optax.sgd(golden["learning_rate"])
  found = ours(lambda: optax.chain(step, ef14(compressor, **on_workers)), golden)
  assert_equal_to_twelve_digits(found, golden["points"])
  found = ours(lambda: optax.chain(ef14(compressor, **on_workers), step), golden)
  assert_equal_to_twelve_digits(found, golden["points"])  # a constant rate may stand behind


def test_ef21_plus_is_the_official_one():
  golden = values.load("ef21_plus")
  assert 1 in golden["replaced"]
  compressor, step = top_k(golden["entries"]), optax.sgd(golden["learning_rate"])
  found = ours(lambda: optax.chain(ef21(compressor, plus=True, **on_workers), step), golden)
  assert_equal_to_twelve_digits(found, golden["points"])


def test_ef21_with_heavy_ball_behind_it_is_the_official_one():
  golden = values.load("ef21_bells")
  step = optax.sgd(golden["learning_rate"], momentum=golden["momentum"])
  found = ours(lambda: optax.chain(ef21(top_k(golden["entries"]), **on_workers), step), golden)
  assert_equal_to_twelve_digits(found, golden["heavy_ball"])


def test_ef21_with_a_downlink_is_the_official_one():
  golden = values.load("ef21_bells")
  step = optax.sgd(golden["learning_rate"])
  options = {"downlink": top_k(golden["returned"]), **on_workers}
  found = ours(lambda: optax.chain(ef21(top_k(golden["entries"]), **options), step), golden)
  assert_equal_to_twelve_digits(found, golden["both_ways"])


def largest(x, k=2):
  kept = np.argsort(np.abs(x))[len(x) - k :]
  return np.where(np.isin(np.arange(len(x)), kept), x, 0)


def power_of_two(x):
  """The nearest one, by NumPy's split into mantissa and exponent."""
  mantissa, exponent = np.frexp(x)
  return np.ldexp(np.sign(x), exponent - (np.abs(mantissa) <= 0.75))


@functools.cache
def problem():
  return values.load("ef14")


def by_hand(step, steps=41):
  """Points of `step(t, g [n, d]) -> u`, which keeps its own state."""
  golden = problem()
  gradient, x, points = gradient_of(golden), golden["start"], []
  for t in range(steps):
    gradients = np.stack([gradient(x, i) for i in range(5)])
    x = x - golden["learning_rate"] * step(t, gradients)
    points.append(x)
  return np.stack(points)


def rows_of(compress, x):
  return np.stack([compress(row) for row in x])


def sgdm_by_hand(eta):
  state = {}

  def step(t, g):
    state["v"] = g if t == 0 else (1 - eta) * state["v"] + eta * g
    old = state.get("G", 0)
    state["G"] = g if t == 0 else old + rows_of(largest, state["v"] - old)
    return state["G"].mean(axis=0)

  return step


def partial_by_hand(participants):
  state = {}

  def step(t, g):
    keys = jax.random.split(jax.random.fold_in(jax.random.key(0), t), 3)
    present = np.asarray(jax.random.permutation(keys[0], 5) < participants)[:, None]
    assert present.sum() == participants
    old = state.get("G", 0)
    state["G"] = g if t == 0 else old + present * rows_of(largest, g - old)
    return state["G"].mean(axis=0)

  return step


def weighted_by_hand(smoothness, compress):
  weights = np.array(smoothness) / np.sum(smoothness)
  state = {}

  def step(t, g):
    scaled = g / (5 * weights[:, None])
    state["G"] = scaled if t == 0 else state["G"] + rows_of(compress, scaled - state["G"])
    return weights @ state["G"]

  return step


def econtrol_by_hand(eta, init):
  state = {"e": np.zeros((5, 12)), "h": np.zeros((5, 12))}

  def step(t, g):
    if t == 0 and init == "full":
      state["h"] = g
    else:
      sent = rows_of(largest, eta * state["e"] + g - state["h"])
      state["e"] = state["e"] + g - state["h"] - sent
      state["h"] = state["h"] + sent
    return state["h"].mean(axis=0)

  return step


UNEQUAL = (1.0, 2.0, 3.0, 1.0, 4.0)
NEAREST = natural_rounding(random=False)
TRANSCRIBED = {
  "momentum": (lambda: ef21(top_k(2), momentum=0.3, **on_workers), sgdm_by_hand(0.3)),
  "participants": (lambda: ef21(top_k(2), participants=3, **on_workers), partial_by_hand(3)),
  "econtrol": (lambda: econtrol(top_k(2), 0.1, **on_workers), econtrol_by_hand(0.1, "full")),
  "econtrol, compressed": (
    lambda: econtrol(top_k(2), 0.1, init="compressed", **on_workers),
    econtrol_by_hand(0.1, "compressed"),
  ),
}


@pytest.mark.parametrize("name", TRANSCRIBED)
def test_transcriptions(name):
  method, by_numpy = TRANSCRIBED[name]
  found = ours(lambda: optax.chain(method(), optax.sgd(problem()["learning_rate"])), problem())
  assert_equal_to_twelve_digits(found, by_hand(by_numpy))


def test_ef21_w_is_its_transcription_where_it_is_not_ef21():
  step = optax.sgd(problem()["learning_rate"])
  found = ours(lambda: optax.chain(ef21_w(NEAREST, UNEQUAL, **on_workers), step), problem())
  expected = by_hand(weighted_by_hand(UNEQUAL, power_of_two))
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)  # it rounds in float32
  plain = by_hand(weighted_by_hand((1.0,) * 5, power_of_two))
  assert np.max(np.abs(found - plain)) > 1e-3


@pytest.mark.parametrize(
  "method",
  [
    lambda: ef21_w(top_k(2), UNEQUAL, **on_workers),
    lambda: econtrol(top_k(2), 0.0, **on_workers),
    lambda: ef21(top_k(2), momentum=1.0, participants=5, downlink=no_compression(), **on_workers),
  ],
)
def test_what_is_ef21(method):
  golden = values.load("ef21")
  start = {**golden, "start": golden["points"][0]}
  found = ours(lambda: optax.chain(method(), optax.sgd(golden["learning_rate"])), start)
  np.testing.assert_allclose(found, golden["points"][1:], rtol=1e-6, atol=1e-7)


def test_without_compression_all_is_distributed_gradient_descent():
  golden, whole = problem(), no_compression()
  rate = golden["learning_rate"]
  expected = by_hand(lambda t, g: g.mean(axis=0), steps=5)
  for method in (
    lambda: ef14(whole, **on_workers),
    lambda: ef21_w(whole, UNEQUAL, init="compressed", **on_workers),
    lambda: econtrol(whole, 0.7, **on_workers),
    lambda: ef21(whole, plus=True, downlink=whole, init="compressed", **on_workers),
  ):
    found = ours(lambda method=method: optax.chain(method(), optax.sgd(rate)), golden, steps=5)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)


THREE = functools.partial(
  points_of, gradient=slope_and_bowl, start=jnp.ones(3), workers=3, steps=100
)


@pytest.mark.parametrize(
  "method",
  [
    lambda: ef14(top_k(1), **on_workers),
    lambda: ef21_w(top_k(1), (3.0, 1.0, 2.0), **on_workers),
    lambda: ef21(top_k(1), momentum=0.5, **on_workers),
    lambda: ef21(top_k(1), plus=True, **on_workers),
    lambda: ef21(top_k(1), downlink=top_k(2), **on_workers),
    lambda: econtrol(top_k(1), 0.1, **on_workers),
  ],
)
def test_it_converges_where_compression_alone_diverges(method):
  points = THREE(optax.chain(method(), optax.sgd(0.05)))
  assert mean_loss(points[-1]) < 1e-3 * mean_loss(points[0])


def test_econtrol_with_all_of_the_error_diverges():
  points = THREE(optax.chain(econtrol(top_k(1), 1.0, **on_workers), optax.sgd(0.05)))
  assert mean_loss(points[-1]) > 1e3 * mean_loss(points[0])


def test_points_of_econtrol_less_their_error_take_uncompressed_steps():
  rate, optimizer = 0.05, econtrol(top_k(1), 0.1, **on_workers)
  state = parallel.with_worker_axis(optimizer.init(jnp.ones(3)), 3)
  axes = worker_axes(state, 0, None)

  def of_worker(x, state, worker):
    g = slope_and_bowl(x, worker)
    updates, state = optimizer.update(g, state, x)
    return x - rate * updates, state, jax.lax.pmean(g, "data")

  step = jax.jit(jax.vmap(of_worker, (None, axes, 0), (None, axes, None), axis_name="data"))
  x = jnp.ones(3)
  for _ in range(12):
    virtual = x - rate * jnp.mean(state.error.tree, axis=0)
    x, state, mean = step(x, state, jnp.arange(3))
    after = x - rate * jnp.mean(state.error.tree, axis=0)
    np.testing.assert_allclose(after, virtual - rate * mean, atol=1e-6)


@pytest.mark.parametrize(
  ("alpha", "xi"), [(0.25, 6.4641016), (0.1, 18.4868330), (0.01, 198.4987437)]
)
def test_step_sizes(alpha, xi):
  of_workers = [1.0, 1.0, 1.0, 100.0]
  new = ef21_stepsize(2.0, of_workers, alpha)
  old = ef21_stepsize(2.0, of_workers, alpha, mean="quadratic")
  assert 1 / new == pytest.approx(2 + 25.75 * xi)
  assert 1 / old == pytest.approx(2 + (10003 / 4) ** 0.5 * xi)
  assert econtrol_theory_eta(alpha) == pytest.approx(alpha / 400)


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (lambda: ef21_stepsize(0.0, [1.0], 0.5), "smoothness must be above 0, got 0.0"),
    (lambda: ef21_stepsize(1.0, [], 0.5), "of_workers must hold a number for each worker"),
    (lambda: ef21_stepsize(1.0, [-1.0], 0.5), "of_workers must be above 0, got -1.0"),
    (lambda: ef21_stepsize(1.0, [1.0], 1.5), "alpha must be in [0, 1], got 1.5"),
    (lambda: econtrol_theory_eta(0.0), "alpha must be above 0, got 0.0"),
  ],
)
def test_step_sizes_refuse(call, message):
  with pytest.raises(ValueError) as error:
    call()
  assert message in str(error.value)


@pytest.mark.parametrize(
  ("method", "message"),
  [
    (ef21(top_k(1), participants=2), "participants must be at most the 1 workers, got 2"),
    (ef21_w(top_k(1), (1.0, 2.0)), "smoothness must hold 1 numbers, one for each worker, got 2"),
  ],
)
def test_another_number_of_workers(method, message):
  with pytest.raises(ValueError, match=message):
    method.update(jnp.ones(3), method.init(jnp.ones(3)))
