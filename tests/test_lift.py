"""LIFT: bytes, collectives, what is frozen, and seeds of the randomised choice."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl import models, parallel
from optimizers._sharpness import path_of
from optimizers.lift import lift
from tests import hlo
from tests.properties import assert_close

SHAPE = (512, 96)


def normal(*shape):
  return jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)


PARAMS = {"kernel": normal(*SHAPE), "bias": normal(64)}


def bytes_of(tree):
  return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


@pytest.mark.parametrize("svd", ["exact", "randomized"])
def test_a_state_of_twelve_bytes_for_each_trained_entry(svd):
  params = {"a": jnp.zeros((100, 30)), "b": jnp.zeros((8, 200)), "bias": jnp.zeros(1000)}
  state = jax.jit(lift(0.1, lora_rank=2, svd=svd).init)(params)
  counts = 8 if svd == "randomized" else 4  # of steps, and the seed
  assert bytes_of(state) - counts == 12 * 2 * (100 + 30 + 8 + 200)


def test_a_density_in_place_of_the_rank():
  state = lift(0.1, density=0.05).init(jnp.zeros((100, 30)))
  assert state[0].leaves.mu.shape == (150,)


@functools.cache
def sharded(svd):
  """The program of a step for a sharded matrix, and the arguments of the first one."""
  mesh = parallel.make_mesh("fsdp=8")
  optimizer = lift(0.1, 2, 4, 2, svd=svd, weight_decay=0.1)
  state = optimizer.init(PARAMS)
  layout = tuple(parallel.state_shardings(tree, mesh) for tree in (PARAMS, state))

  def update(*arguments):
    return jax.lax.with_sharding_constraint(optimizer.update(*arguments), layout)

  params, state = jax.device_put((PARAMS, state), layout)
  return jax.jit(update).lower(params, state, params).compile(), (params, state, params)


def test_sharded_matrices_stay_where_they_are():
  compiled, arguments = sharded("randomized")
  updates, state = compiled(*arguments)
  assert updates["kernel"].sharding.shard_shape(SHAPE) == (64, 96)
  k = 2 * sum(SHAPE)
  assert state[0].leaves["kernel"].mu.sharding.shard_shape((k,)) == (k // 8,)
  part = 4 * np.prod(SHAPE) / 8  # of a device, which is what it would send
  found = hlo.collectives(compiled.as_text())
  assert max(collective.bytes for collective in found) <= part / 2
  for collective in found:  # in every step, the trained entries; to choose, sums `[b, 2r]`
    assert collective.bytes <= 2 * 4 * k or "conditional" in collective.within
    assert collective.bytes <= 4 * k or "conditional" not in collective.within


def test_the_exact_choice_is_found_to_gather_them():
  found = hlo.collectives(sharded("exact")[0].as_text())
  largest = max(found, key=lambda collective: collective.bytes)
  assert (largest.kind, largest.bytes) == ("all-gather", 4 * np.prod(SHAPE) / 8)
  assert "conditional" in largest.within


def test_sharded_steps_are_those_of_one_device():
  compiled, arguments = sharded("randomized")
  optimizer = lift(0.1, 2, 4, 2, svd="randomized", weight_decay=0.1)
  expected = jax.jit(optimizer.update)(PARAMS, optimizer.init(PARAMS), PARAMS)
  assert_close(compiled(*arguments), expected, 10)


def test_biases_norms_and_embeddings_are_frozen():
  model = models.make("transformer", 11)
  init = functools.partial(model.init, jax.random.key(0), jnp.zeros((1, 8), jnp.int32))
  params = jax.eval_shape(init)[0]
  leaves = jax.eval_shape(lift(0.1, 1).init, params)[0].leaves
  trained = {path_of(path[:-1]) for path, _ in jax.tree.leaves_with_path(leaves)}
  matrices = {path_of(path) for path, leaf in jax.tree.leaves_with_path(params) if leaf.ndim > 1}
  assert trained == {path for path in matrices if path.endswith("/kernel")}
  names = {path.split("/")[-1] for path in matrices - trained}
  assert names == {"bias", "embedding", "positions"}  # biases of heads have two axes


def test_a_matrix_of_too_many_entries_is_refused():
  with pytest.raises(ValueError, match="at most 2147483647 entries, got shape"):
    jax.eval_shape(lift(0.1).init, jax.ShapeDtypeStruct((65536, 32768), jnp.float32))


def test_the_seed_decides_between_randomised_choices():
  optimizer = lift(0.1, 1, 1, svd="randomized", power_iterations=0)
  w = normal(16, 24)
  state = optimizer.init(w)
  step = jax.jit(optimizer.update)

  def chosen(seed):
    draws = state[0].draws._replace(seed=jnp.array(seed, jnp.int32))
    return step(w, (state[0]._replace(draws=draws), *state[1:]), w)[1][0].leaves.indices

  np.testing.assert_array_equal(chosen(1), chosen(1))
  assert np.any(chosen(1) != chosen(2))
