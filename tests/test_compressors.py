"""Compressors: contraction, what messages hold, and what workers exchange."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optimizers.compressors._compressor import exchange, message_bytes
from optimizers.compressors.low_rank import low_rank
from optimizers.compressors.natural_rounding import natural_rounding
from optimizers.compressors.no_compression import no_compression
from optimizers.compressors.rand_k import rand_k
from optimizers.compressors.scaled_sign import scaled_sign
from optimizers.compressors.top_k import top_k
from optimizers.compressors.uniform_rounding import uniform_rounding
from tests import tiers

pytestmark = tiers.unless_changed("optimizers/compressors/")

ALL = {
  "top_k": top_k(0.3),
  "top_k, blocks": top_k(0.3, block=8),
  "rand_k, own": rand_k(0.3),
  "rand_k, shared": rand_k(0.3, key="shared"),
  "rand_k, unbiased": rand_k(0.7, unbiased=True),
  "scaled_sign": scaled_sign(),
  "low_rank": low_rank(2),
  "natural_rounding": natural_rounding(),
  "natural_rounding, nearest": natural_rounding(random=False),
  "uniform_rounding": uniform_rounding(2),
  "uniform_rounding, random": uniform_rounding(2, random=True),
  "no_compression": no_compression(),
}
SHAPE, DRAWS = (6, 5), 2000


def seen(compressor, x, key):
  """C(x), as the receiver sees it."""
  shared = (key,) if compressor.draws == "shared" else ()
  message = compressor.compress(x, *(() if compressor.draws == "no" else (key,)))
  return compressor.add(jnp.zeros_like(x), message, 1.0, *shared)


@functools.cache
def drawn(name):
  """C(x) for many keys; one of them where C draws nothing."""
  draws = 1 if ALL[name].draws == "no" else DRAWS
  keys = jax.random.split(jax.random.key(0), draws)
  return jax.jit(lambda x: jax.vmap(lambda key: seen(ALL[name], x, key))(keys))


def arrays():
  rng = np.random.default_rng(0)
  normal = rng.normal(size=SHAPE)
  return {
    "normal": normal,
    "heavy": normal**5,
    "equal": np.sign(normal),
    "alone": np.eye(30)[7].reshape(SHAPE),
    "steps": np.where(np.arange(30) == 0, 1.0, 0.2499).reshape(SHAPE),
    "small": 1e-12 * normal,
    "zero": np.zeros(SHAPE),
  }


@pytest.mark.parametrize("name", ALL)
def test_the_error_is_as_small_as_alpha_says(name):
  alpha = ALL[name].alpha(30)
  for x in arrays().values():
    x = x.astype(np.float32)
    errors = np.sum((np.asarray(drawn(name)(x), np.float64) - x) ** 2, axis=(1, 2))
    noise = 4 * errors.std() / np.sqrt(len(errors))
    assert errors.mean() <= (1 - alpha + 1e-6) * np.sum(x.astype(np.float64) ** 2) + noise


def error_of(name, x):
  x = np.asarray(x, np.float32)
  return np.mean(np.sum((np.asarray(drawn(name)(x)) - x) ** 2, axis=(1, 2))) / np.sum(x**2)


@pytest.mark.parametrize(
  ("name", "x"),
  [
    ("top_k", np.ones(SHAPE)),
    ("scaled_sign", arrays()["alone"]),
    ("rand_k, own", arrays()["normal"]),
    ("rand_k, shared", arrays()["normal"]),
    ("rand_k, unbiased", arrays()["normal"]),
    ("natural_rounding", np.full(SHAPE, 4 / 3)),
    ("natural_rounding, nearest", np.full(SHAPE, 1.5)),
    ("uniform_rounding", arrays()["steps"]),
  ],
)
def test_alpha_is_met_by_the_worst_array(name, x):
  assert error_of(name, x) == pytest.approx(1 - ALL[name].alpha(30), rel=0.05)


@pytest.mark.parametrize(
  ("name", "factor"),
  [
    ("rand_k, own", 0.3),
    ("rand_k, shared", 0.3),
    ("rand_k, unbiased", 1.0),
    ("natural_rounding", 8 / 9),
    ("uniform_rounding, random", ALL["uniform_rounding, random"].alpha(30)),
  ],
)
def test_the_mean_of_draws(name, factor):
  x = arrays()["normal"].astype(np.float32)
  found = np.asarray(drawn(name)(x), np.float64)
  noise = 5 * found.std(axis=0) / np.sqrt(DRAWS) + 1e-5
  assert np.all(np.abs(found.mean(axis=0) - factor * x) < noise)


@pytest.mark.parametrize(
  ("name", "size"),
  [
    ("top_k", 9 * 6),
    ("top_k, blocks", 4 * 3 * 6),
    ("rand_k, own", 9 * 6),
    ("rand_k, shared", 9 * 4),
    ("scaled_sign", 4 + 4),
    ("low_rank", 4 * 2 * (6 + 5)),
    ("natural_rounding", 30 + 4),
    ("uniform_rounding", 30 + 4),
    ("no_compression", 4 * 30),
  ],
)
def test_bytes_of_messages(name, size):
  key = () if ALL[name].draws == "no" else (jax.random.key(0),)
  message = jax.eval_shape(ALL[name].compress, jax.ShapeDtypeStruct(SHAPE, jnp.float32), *key)
  assert message_bytes(message) == size


@pytest.mark.parametrize("name", ALL)
def test_odd_shapes(name):
  for shape in ((), (1,), (0, 3), (3, 2, 4)):
    x = jnp.ones(shape)
    assert seen(ALL[name], x, jax.random.key(0)).shape == shape
    assert ALL[name].alpha(x.size) <= 1


def test_blocks_keep_their_own_largest():
  x = arrays()["normal"].astype(np.float32).reshape(-1)
  expected = np.zeros(30, np.float32)
  for start in range(0, 30, 8):
    part = x[start : start + 8]
    kept = start + np.argsort(np.abs(part))[-3:]
    expected[kept] = x[kept]
  found = seen(ALL["top_k, blocks"], jnp.asarray(x.reshape(SHAPE)), None)
  np.testing.assert_array_equal(found, expected.reshape(SHAPE))
  assert ALL["top_k, blocks"].alpha(30) == 3 / 8


def test_low_rank_is_the_leading_part_of_the_decomposition():
  rng = np.random.default_rng(0)
  x = rng.normal(size=(3, 4, 7))
  left, values, right = np.linalg.svd(x.reshape(12, 7))
  expected = (left[:, :2] * values[:2] @ right[:2]).reshape(x.shape)
  np.testing.assert_allclose(
    seen(low_rank(2), jnp.asarray(x, jnp.float32), None), expected, atol=1e-5
  )


def test_natural_rounding_at_the_ends_of_float32():
  x = jnp.array([3e38, -jnp.inf, 1.2e-38, 0.0])
  found = seen(natural_rounding(random=False), x, None)
  np.testing.assert_array_equal(found, [2.0**127, -np.inf, 2.0**-126, 0])


@pytest.mark.parametrize("name", ["rand_k, own", "rand_k, shared", "natural_rounding"])
def test_workers_draw_alike_only_with_a_shared_key(name):
  workers, x = 3, jnp.ones((3, *SHAPE)) * jnp.array([1.0, 1.3, 2.6])[:, None, None]

  def step(x):
    zeros = jnp.zeros_like(x)
    return exchange(ALL[name], (x, zeros, zeros), "data", key=jax.random.key(1))[:2]

  own, mean = jax.vmap(step, axis_name="data", out_axes=(0, None))(x)
  np.testing.assert_allclose(mean, np.mean(own, axis=0), rtol=1e-6)
  places = np.asarray(own != 0).reshape(workers, -1)
  if name.startswith("rand_k"):
    assert np.all(places.sum(axis=1) == 9)
    assert np.all(places == places[0]) == (name == "rand_k, shared")


@pytest.mark.parametrize(
  ("make", "message"),
  [
    (lambda: rand_k(0), "k must be a fraction in (0, 1] or a whole number above 0, got 0"),
    (lambda: rand_k(1, key="mine"), "key must be one of ['own', 'shared'], got 'mine'"),
    (lambda: top_k(1, block=0), "block must be a whole number of at least 1, got 0"),
    (lambda: low_rank(0), "rank must be a whole number of at least 1, got 0"),
    (lambda: uniform_rounding(0), "levels must be a whole number of at least 1, got 0"),
    (lambda: uniform_rounding(128), "levels must be in [1, 127], got 128"),
  ],
)
def test_compressors_refuse(make, message):
  with pytest.raises(ValueError) as error:
    make()
  assert message in str(error.value)
