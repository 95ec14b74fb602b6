"""Values of distributed optimizers and of compressors, with workers simulated by vmap."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrl import parallel
from jaxrl.oracle import PerWorker
from optimizers.compressors.top_k import top_k
from optimizers.ef21 import ef21
from tests import values


def points_of(optimizer, gradient, start, workers, steps):
  """The points of a run; `gradient(x, i)` is that of worker i."""
  state = parallel.with_worker_axis(optimizer.init(start), workers)
  axes = jax.tree.map(_axis, state, is_leaf=lambda node: isinstance(node, PerWorker))

  def of_worker(x, state, worker):
    updates, state = optimizer.update(gradient(x, worker), state, x)
    return optax.apply_updates(x, updates), state

  mapped = jax.vmap(of_worker, in_axes=(None, axes, 0), out_axes=(None, axes), axis_name="data")
  step = jax.jit(lambda x, state: mapped(x, state, jnp.arange(workers)))
  points = [start]
  for _ in range(steps):
    x, state = step(points[-1], state)
    points.append(x)
  return np.array(points)


def _axis(node):
  return 0 if isinstance(node, PerWorker) else None


def test_ef21_is_the_official_one_to_twelve_digits():
  golden = values.load("ef21")
  with jax.enable_x64(True):
    matrices, targets = jnp.asarray(golden["matrices"]), jnp.asarray(golden["targets"])

    def gradient(x, worker):
      a = matrices[worker]
      return a.T @ (a @ x - targets[worker]) / len(a) + 2 * golden["penalty"] * x

    optimizer = optax.chain(
      ef21(top_k(golden["entries"]), axis_name="data"), optax.sgd(golden["learning_rate"])
    )
    start, steps = jnp.asarray(golden["points"][0]), len(golden["points"]) - 1
    points = points_of(optimizer, gradient, start, len(matrices), steps)
  assert points.dtype == np.float64
  np.testing.assert_allclose(points, golden["points"], rtol=1e-12, atol=1e-13)


SLOPES = jnp.array([[-3.0, 2.0, 2.0], [2.0, -3.0, 2.0], [2.0, 2.0, -3.0]])


def slope_and_bowl(x, worker):
  """The gradient of <a_i, x>^2 + |x|^2 / 4, of Beznosikov et al.'s example of divergence."""
  a = SLOPES[worker]
  return 2 * a * (a @ x) + x / 2


def mean_loss(x):
  return np.mean((np.asarray(SLOPES) @ x) ** 2) + x @ x / 4


def without_feedback(compressor):
  """Plain compressed gradient descent: the mean of the compressed gradients."""

  def update(g, _):
    c = compressor.add(jnp.zeros_like(g), compressor.compress(g), 1.0)
    return jax.lax.pmean(c, "data")

  return optax.stateless(update)


def test_ef21_converges_where_compression_alone_diverges():
  start = jnp.ones(3)
  run = functools.partial(points_of, gradient=slope_and_bowl, start=start, workers=3, steps=100)
  plain = run(optax.chain(without_feedback(top_k(1)), optax.sgd(0.05)))
  growth = 1.0916667  # 1 + 0.05 * 11 / 6: the entry kept is -11/2 x_i, for one worker in three
  np.testing.assert_allclose(plain[:, 0], growth ** np.arange(101), rtol=1e-4)
  for init in ("full", "compressed"):
    points = run(optax.chain(ef21(top_k(1), axis_name="data", init=init), optax.sgd(0.05)))
    assert mean_loss(points[-1]) < 1e-5 < 1e-3 * mean_loss(points[0])


@pytest.mark.parametrize(
  ("k", "size", "kept"),
  [
    *((1, 30, 1), (7, 30, 7), (30, 30, 30), (31, 30, 30), (5, 1, 1)),
    *((1.0, 30, 30), (0.1, 30, 3), (0.11, 30, 4), (0.01, 30, 1), (0.07, 100, 7), (0.5, 1, 1)),
  ],
)
def test_top_k_keeps_the_largest_magnitudes(k, size, kept):
  x = np.random.default_rng(size).normal(size=size).astype(np.float32)
  expected = np.where(np.abs(x) >= np.sort(np.abs(x))[-kept], x, 0)
  compressor = top_k(k)
  message = compressor.compress(jnp.asarray(x))
  assert message.values.shape == message.indices.shape == (kept,)
  np.testing.assert_array_equal(compressor.add(jnp.zeros(size), message, 1.0), expected)
  np.testing.assert_allclose(compressor.add(jnp.ones(size), message, -0.25), 1 - expected / 4)
  alpha = compressor.alpha(size)
  assert alpha == kept / size
  assert np.sum((expected - x) ** 2) <= (1 - alpha) * np.sum(x**2) + 1e-7


@pytest.mark.parametrize("size", [2**16, 2**16 + 1])
def test_top_k_reaches_the_last_entry(size):
  x = jnp.zeros((1, size)).at[0, -1].set(-2.0)
  compressor = top_k(2)
  np.testing.assert_array_equal(compressor.add(0 * x, compressor.compress(x), 1.0), x)


def test_top_k_without_entries():
  compressor, nothing = top_k(0.5), jnp.zeros((0, 3))
  assert compressor.add(nothing, compressor.compress(nothing), 1.0).shape == (0, 3)
  assert compressor.alpha(0) == 1


@pytest.mark.parametrize("k", [0, -1, 0.0, -0.1, 1.5, float("nan"), True, "1"])
def test_top_k_refuses(k):
  with pytest.raises(ValueError, match=r"k must be a fraction in \(0, 1\] or a whole number"):
    top_k(k)
