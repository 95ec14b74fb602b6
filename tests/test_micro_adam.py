"""MicroAdam: bytes, temporaries, collectives, and leaves of all sizes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl import parallel
from optimizers.micro_adam import micro_adam, scale_by_micro_adam
from tests import hlo, tiers

pytestmark = tiers.unless_changed("optimizers/micro_adam.py")

SHARDED = {"kernel": (256, 70), "bias": (64,), "odd": (7, 30)}


def leaves_of(shapes):
  rng = np.random.default_rng(0)
  make = lambda shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
  return jax.tree.map(make, shapes, is_leaf=lambda x: type(x) is tuple)


def arrays_of(optimizer, shape):
  state = jax.eval_shape(optimizer.init, jax.ShapeDtypeStruct(shape, jnp.float32))
  return jax.tree.leaves(state.leaves)


def bytes_a_parameter(optimizer, shape):
  return sum(x.size * x.dtype.itemsize for x in arrays_of(optimizer, shape)) / np.prod(shape)


@pytest.mark.parametrize("shape", [(4096,), (64, 64), (1000, 1000), (8, 4096), (50257, 768)])
def test_a_state_of_less_than_a_byte_a_parameter(shape):
  assert bytes_a_parameter(scale_by_micro_adam(), shape) <= 0.97
  assert bytes_a_parameter(scale_by_micro_adam(quant_block_size=100_000), shape) <= 0.91


def test_no_array_of_the_size_of_the_parameters_has_more_than_the_codes_bytes():
  for x in arrays_of(scale_by_micro_adam(), (64, 640)):
    assert x.size * x.dtype.itemsize <= 64 * 640 / 2


@pytest.mark.parametrize("alpha", [0.0, 0.1])
def test_temporaries_are_those_of_the_largest_leaf(alpha):
  params = leaves_of([(256, 128), (256, 128), (128, 256), (91, 301)])
  optimizer = micro_adam(1e-3, alpha=alpha)
  state = optimizer.init(params)
  compiled = jax.jit(optimizer.update).lower(params, state, params).compile()
  assert compiled.memory_analysis().temp_size_in_bytes < 6 * 4 * 256 * 128


@functools.cache
def sharded():
  """Updates and state of sharded parameters, those of one device, and the former's program."""
  mesh = parallel.make_mesh("fsdp=8")
  optimizer = micro_adam(1e-3, block_size=128, alpha=0.1, weight_decay=0.1)
  params = leaves_of(SHARDED)
  state = optimizer.init(params)
  layout = [parallel.state_shardings(tree, mesh) for tree in (params, state)]
  step = jax.jit(
    optimizer.update, in_shardings=(*layout, layout[0]), out_shardings=tuple(layout)
  ).lower(params, state, params)
  compiled = step.compile()
  placed = [jax.device_put(*pair) for pair in zip((params, state), layout, strict=True)]
  return compiled(*placed, placed[0]), jax.jit(optimizer.update)(params, state, params), compiled


def test_sharded_parameters_stay_where_they_are():
  (updates, state), _, compiled = sharded()
  assert len(updates["kernel"].sharding.shard_shape((256, 70))) == 2
  assert updates["kernel"].sharding.shard_shape((256, 70)) == (32, 70)
  for array in state[0].leaves["kernel"]:
    assert array.sharding.shard_shape(array.shape)[0] == 1
  assert not [found for found in hlo.collectives(compiled.as_text()) if found.bytes > 8]


def test_sharded_steps_are_those_of_one_device():
  actual, expected, _ = sharded()
  equal = lambda one, other: np.testing.assert_allclose(  # noqa: E731
    np.asarray(one, np.float32), np.asarray(other, np.float32), rtol=1e-6, atol=1e-9
  )
  jax.tree.map(equal, actual, expected)


@functools.cache
def step_of(optimizer_kind):
  optimizer = scale_by_micro_adam(**dict(optimizer_kind))
  return optimizer, jax.jit(optimizer.update)


def run(gradients, **arguments):
  optimizer, step = step_of(tuple(arguments.items()))
  state = optimizer.init(gradients[0])
  for gradient in gradients:
    updates, state = step(gradient, state)
  return updates, state


def test_leaves_of_any_size():
  shapes = [(), (1,), (0, 8), (3, 0), (7,), (5, 3), (2, 67), (16, 9)]
  tree = leaves_of(shapes)
  updates, _ = run([tree, tree], density=0.2, block_size=8, quant_block_size=4)
  for update, shape in zip(updates, shapes, strict=True):
    assert update.shape == shape
    assert np.all(np.isfinite(update))
    assert not update.size or np.any(update)


def test_a_leaf_of_one_entry_is_always_sent():
  updates, state = run([jnp.array([3.0])])
  np.testing.assert_allclose(updates, [1.0], rtol=1e-5)
  assert not np.any(state.leaves.codes)


def test_equal_entries_have_codes_zero_and_survive():
  updates, state = run([jnp.full((1, 64), 2.0)], block_size=32, density=1 / 32, quant_block_size=16)
  leaf = state.leaves
  np.testing.assert_array_equal(np.flatnonzero(updates), [0, 32])  # of equals, the first
  np.testing.assert_array_equal(leaf.low, [[0, 2, 0, 2]])
  np.testing.assert_array_equal(leaf.high, [[2, 2, 2, 2]])
  np.testing.assert_array_equal(leaf.codes[0, 8:16], 0)
  np.testing.assert_array_equal(leaf.codes[0, :8], [0x0F] + 7 * [0xFF])


def test_a_zero_gradient_moves_nothing():
  updates, state = run([jnp.zeros((8, 8))] * 2, density=0.2)
  assert not np.any(updates)
  for array in state.leaves[1:]:
    assert not np.any(np.asarray(array, np.float32))


def test_the_largest_entries_of_each_block_are_kept_in_order():
  gradient = leaves_of((3, 100))
  _, state = run([gradient], block_size=40, density=0.1, shards=3)
  for row, indices in zip(np.abs(gradient), np.asarray(state.leaves.indices[:, 0]), strict=True):
    blocks = [row[:40], row[40:80], row[80:]]
    largest = [np.sort(np.argsort(-b)[:k]) for b, k in zip(blocks, (4, 4, 2), strict=True)]
    np.testing.assert_array_equal(indices, np.concatenate(largest))


@pytest.mark.parametrize("levels", [5, 10**6])
def test_of_equal_entries_the_first_are_kept_and_no_other_leaves_the_error(levels):
  rng = np.random.default_rng(0)
  gradient = rng.integers(-levels, levels, size=(3, 903)).astype(np.float32)  # 903 is 4 * 225 + 3
  _, state = run([jnp.asarray(gradient)], block_size=1024, shards=3, quant_block_size=904)
  kept = 9
  _, expected = jax.lax.top_k(jnp.abs(gradient), kept)
  np.testing.assert_array_equal(state.leaves.indices[:, 0], np.sort(expected, axis=1))
  left = gradient.copy()
  np.put_along_axis(left, np.asarray(expected), 0, axis=1)
  codes = np.stack([state.leaves.codes >> 4, state.leaves.codes & 15], axis=-1).reshape(3, -1)
  low, high = (np.asarray(side, np.float32) for side in (state.leaves.low, state.leaves.high))
  step = (high - low) / 15
  inside = np.clip(left, low, high)  # ends are rounded to bfloat16
  assert np.all(np.abs(low + codes[:, :903] * step - inside) <= 0.501 * step)


def test_rows_of_several_shards_round_the_entries_of_short_blocks_down():
  one, many = (scale_by_micro_adam(shards=n).init(jnp.zeros((64, 64))) for n in (1, 8))
  assert one.leaves.indices.shape == (1, 10, 41)
  assert many.leaves.indices.shape == (8, 10, 5)
