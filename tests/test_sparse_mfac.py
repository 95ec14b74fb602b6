"""Sparse M-FAC and GGT: bytes, collectives, and leaves of all sizes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl import parallel
from optimizers.sparse_ggt import sparse_ggt
from optimizers.sparse_mfac import sparse_mfac
from tests import hlo

M = 12
SHARDED = {"kernel": (256, 70), "bias": (64,), "odd": (7, 30)}
METHODS = {
  "mfac": lambda: sparse_mfac(M, 0.1, 1e-2, block_size=128),
  "ggt": lambda: sparse_ggt(M, 0.1, 1e-2, block_size=128),
}


def leaves_of(shapes, seed=0):
  rng = np.random.default_rng(seed)
  make = lambda shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
  return jax.tree.map(make, shapes, is_leaf=lambda x: type(x) is tuple)


@pytest.mark.parametrize(
  ("arguments", "of_window"),
  [
    ({}, 2 + 4),
    ({"window_dtype": "bfloat16"}, 2 + 2),
    ({"block_size": None}, 4 + 4),
  ],
)
def test_the_state_has_as_many_bytes_as_the_docstring_says(arguments, of_window):
  optimizer = sparse_mfac(64, **arguments)
  state = optimizer.init({"kernel": jnp.zeros((8 * 16, 4096))})
  entries, blocks = 8 * 16 * 4096, 8 * 16
  kept = blocks * 41 if arguments.get("block_size", 4096) else 8 * int(0.01 * entries / 8)
  expected = 4 * entries + 64 * kept * of_window + 4 * (64**2 + 64 + 1)
  assert sum(x.nbytes for x in jax.tree.leaves(state)) == expected


@functools.cache
def sharded(method):
  """Two updates and states of sharded parameters, those of one device, and the program."""
  mesh = parallel.make_mesh("fsdp=8")
  optimizer = METHODS[method]()
  params = leaves_of(SHARDED)
  state = optimizer.init(params)
  layout = [parallel.state_shardings(tree, mesh) for tree in (params, state)]
  compiled = (
    jax.jit(optimizer.update, in_shardings=tuple(layout), out_shardings=(layout[0], layout[1]))
    .lower(params, state)
    .compile()
  )
  alone = jax.jit(optimizer.update)
  found = expected = state
  for seed in range(3):
    gradient = leaves_of(SHARDED, seed)
    one = alone(gradient, expected)
    placed = [
      jax.device_put(*pair)
      for pair in zip((gradient, found), compiled.input_shardings[0], strict=True)
    ]
    many = compiled(*placed)
    found, expected = many[1], one[1]
  return many, one, compiled


@pytest.mark.parametrize("method", METHODS)
def test_sharded_parameters_stay_where_they_are(method):
  (updates, state), _, compiled = sharded(method)
  assert updates["kernel"].sharding.shard_shape((256, 70)) == (32, 70)
  assert state.error["kernel"].sharding.shard_shape((256, 70)) == (32, 70)
  for array in state.windows["kernel"]:
    assert array.sharding.shard_shape(array.shape)[0] == 1
  found = hlo.collectives(compiled.as_text())
  assert not [one for one in found if "while" in one.within]
  assert sum(one.bytes for one in found) <= 2 * 4 * (M + 1), found


@pytest.mark.parametrize("method", METHODS)
def test_sharded_steps_are_those_of_one_device(method):
  actual, expected, _ = sharded(method)
  equal = lambda one, other: np.testing.assert_allclose(one, other, rtol=2e-5, atol=1e-5)  # noqa: E731
  jax.tree.map(equal, actual, expected)


def test_temporaries_are_few_arrays_of_the_size_of_the_parameters():
  params = leaves_of([(256, 128), (256, 128), (128, 256)])
  optimizer = sparse_mfac(64)
  state = optimizer.init(params)
  compiled = jax.jit(optimizer.update, donate_argnums=1).lower(params, state).compile()
  system = 4 * 64**2
  assert compiled.memory_analysis().temp_size_in_bytes < 5 * 3 * 4 * 256 * 128 + 6 * system


def test_leaves_of_any_size():
  shapes = [(), (1,), (0, 8), (3, 0), (7,), (5, 3), (2, 67), (16, 9)]
  optimizer = sparse_mfac(3, 0.2, 0.1, block_size=8)
  gradient = leaves_of(shapes)
  state, step = optimizer.init(gradient), jax.jit(optimizer.update)
  for _ in range(2):
    updates, state = step(gradient, state)
  for update, shape in zip(updates, shapes, strict=True):
    assert update.shape == shape
    assert np.all(np.isfinite(update))
    assert not update.size or np.any(update)


def test_zero_gradients_move_nothing_and_leave_the_window_as_it_was():
  optimizer = sparse_mfac(3, 0.2, 1e-7)
  state = optimizer.init(jnp.zeros((8, 8)))
  updates, after = jax.jit(optimizer.update)(jnp.zeros((8, 8)), state)
  assert not np.any(updates)
  assert not np.any(after.windows.values)
  jax.tree.map(np.testing.assert_array_equal, after.gram, state.gram)


def test_blocks_beyond_16_bits_take_the_largest_entries_of_all():
  gradient = leaves_of((40_000,))
  optimizer = sparse_mfac(1, 0.001, 0.1, block_size=None, shards=1)
  _, state = jax.jit(optimizer.update)(gradient, optimizer.init(gradient))
  assert state.windows.indices.dtype == jnp.int32
  expected = np.sort(np.argsort(-np.abs(gradient))[:40])
  np.testing.assert_array_equal(state.windows.indices[0, 0], expected)
