"""One train step on any mesh: the same numbers, the same checkpoints, the same copies."""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from jaxrl import models, parallel, spec, train
from jaxrl.checkpoint import CheckpointError, Checkpoints
from jaxrl.oracle import PerWorker
from tests.test_ef21 import recorder

EXAMPLES, FEATURES, CLASSES = 32, 8, 4
OPTIMIZER = "sam(rho=0.05) | adamw(1e-3)"
SPARSE = "ef21(top_k(0.2), axis_name='data') | adam(1e-3)"
LAYOUTS = ("data=8", "data=4,fsdp=2", "data=4", "data=2", "data=1", None)
STATEFUL = "elr() | group_dro()"


class Normalised(nn.Module):
  """A small network with BatchNorm."""

  @nn.compact
  def __call__(self, inputs, train):
    x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(nn.Dense(16)(inputs))
    return nn.Dense(CLASSES)(nn.relu(x))


MODELS = {
  "mlp": models.from_flax(models.Mlp(CLASSES, (16,))),
  "normalised": models.from_flax(Normalised()),
}


def mesh_of(layout, axis_type=AxisType.Auto):
  """The first devices as a mesh."""
  sizes = {name: int(size) for name, _, size in (part.partition("=") for part in layout.split(","))}
  devices = jax.devices()[: math.prod(sizes.values())]
  return jax.make_mesh(
    tuple(sizes.values()), tuple(sizes), (axis_type,) * len(sizes), devices=devices
  )


def parts_of(objective, optimizer, axis_name=None, model="mlp"):
  names = {"num_examples": EXAMPLES, "num_classes": CLASSES, "num_groups": 2, "steps": 9}
  if isinstance(optimizer, str):
    optimizer = spec.optimizer(optimizer, **names, epochs=1)
  return train.make_train(
    MODELS[model],
    spec.objective(objective, **names, epochs=1),
    optimizer,
    jnp.zeros((1, FEATURES)),
    axis_name=axis_name,
  )


@functools.cache
def program_on(layout, objective="cross_entropy()", optimizer=OPTIMIZER, model="mlp"):
  axis_name = "data" if "axis_name" in optimizer else None
  parts = parts_of(objective, optimizer, axis_name, model)
  return parallel.lay_out(parts, layout and mesh_of(layout), axis_name, 0)


def batch_of(step):
  """Workers count 0 to 4 of their four examples, other ones in each step."""
  rng = np.random.default_rng(step)
  counted = rng.permutation([0, 1, 2, 4, 4, 3, 1, 2])
  return {
    "inputs": rng.normal(size=(EXAMPLES, FEATURES)).astype(np.float32),
    "labels": rng.integers(CLASSES, size=EXAMPLES).astype(np.int32),
    "group": rng.integers(2, size=EXAMPLES).astype(np.int32),
    "mask": (np.arange(4) < counted[:, None]).astype(np.float32).reshape(-1),
    "index": rng.permutation(EXAMPLES).astype(np.int32),
  }


def after(program, steps, state=None, first=0):
  state = program.init(0) if state is None else state
  metrics = {}
  for step in range(first, first + steps):
    state, metrics = program.step(state, program.place(batch_of(step)))
  return state, metrics


def assert_close(actual, expected, atol=1e-6):
  close = functools.partial(np.testing.assert_allclose, rtol=0, atol=atol)
  jax.tree.map(close, actual, expected)


@pytest.mark.parametrize("objective", ["cross_entropy()", "elr()", "cross_entropy() | group_dro()"])
@pytest.mark.parametrize("layout", ["data=8", "data=4,fsdp=2"])
def test_global_steps_equal_one_device(layout, objective):
  expected = after(program_on(None, objective), 3)
  program = program_on(layout, objective)
  state, metrics = after(program, 3)
  assert_close((state, metrics), expected)
  kernel = state.params["Dense_0"]["kernel"]
  assert kernel.sharding.shard_shape(kernel.shape)[0] == FEATURES // (2 if "fsdp" in layout else 1)
  evaluated = program.evaluate(state, program.place(batch_of(0)))
  assert_close(evaluated, program_on(None, objective).evaluate(expected[0], batch_of(0)), 1e-5)


@pytest.fixture(scope="module")
def saved_on_eight(tmp_path_factory):
  folder = tmp_path_factory.mktemp("eight")
  program = program_on("data=8", STATEFUL)
  state, _ = after(program, 2)
  with Checkpoints(folder, {}) as checkpoints:
    checkpoints.save(2, state)
  copy = jax.device_get(state)
  return folder, copy, jax.device_get(after(program, 1, state, 2))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_eight_devices_saved_comes_back_on_any_mesh(layout, saved_on_eight):
  folder, before, expected = saved_on_eight
  program = program_on(layout, STATEFUL)
  with Checkpoints(folder, {}) as checkpoints:
    state = checkpoints.restore_latest(program.abstract_state).state
  jax.tree.map(np.testing.assert_array_equal, state, before)
  if layout is not None:
    shardings = jax.tree.map(lambda leaf: leaf.sharding, program.abstract_state)
    assert jax.tree.map(lambda leaf: leaf.sharding, state) == shardings
  assert_close(after(program, 1, state, 2), expected, 0 if layout == "data=8" else 1e-6)


def test_what_fsdp_saved_comes_back_on_one_device(tmp_path):
  program = program_on("data=4,fsdp=2", STATEFUL)
  state, _ = after(program, 2)
  with Checkpoints(tmp_path, {}) as checkpoints:
    checkpoints.save(2, state)
    one = program_on(None, STATEFUL)
    restored = checkpoints.restore_latest(one.abstract_state).state
  jax.tree.map(np.testing.assert_array_equal, restored, state)
  assert_close(after(one, 1, restored, 2), after(program, 1, state, 2))


def test_state_of_workers_needs_as_many(tmp_path):
  program = program_on("data=8", optimizer=SPARSE)
  state, _ = after(program, 2)
  with Checkpoints(tmp_path, {}) as checkpoints:
    checkpoints.save(2, state)
    restored = checkpoints.restore_latest(program.abstract_state).state
    for layout in ("data=4", "data=4,fsdp=2"):
      with pytest.raises(CheckpointError, match=r"8 workers, now there are 4.*with 8 workers, or"):
        checkpoints.restore_latest(program_on(layout, optimizer=SPARSE).abstract_state)
  assert_close(after(program, 1, restored, 2), after(program, 1, state, 2), 0)


def test_an_explicit_mesh_is_refused():
  parts = parts_of("cross_entropy()", OPTIMIZER)
  with pytest.raises(ValueError, match=r"mesh axes must be Auto.*\['data'\]"):
    parallel.lay_out(parts, mesh_of("data=8", AxisType.Explicit), None, 0)


def copies(leaf):
  return [np.asarray(shard.data) for shard in leaf.addressable_shards]


@pytest.mark.parametrize("model", ["mlp", "normalised"])
@pytest.mark.parametrize("objective", [STATEFUL, "cross_entropy() | group_dro()"])
def test_under_local_gradients_all_devices_hold_the_same(objective, model):
  program = program_on("data=8", objective, SPARSE, model)
  first = program.init(0)
  start = jax.device_get((first.objective, first.model))
  state, metrics = after(program, 3, first)
  leaves = jax.tree.leaves((state, metrics), is_leaf=lambda node: isinstance(node, PerWorker))
  shared = [leaf for leaf in leaves if not isinstance(leaf, PerWorker)]
  assert len(shared) < len(leaves)
  for leaf in shared:
    held = copies(leaf)
    assert len(held) == 8
    for copy in held:
      np.testing.assert_array_equal(copy, held[0])
  moved = jax.tree.map(lambda a, b: not np.array_equal(a, b), start, (state.objective, state.model))
  assert all(jax.tree.leaves(moved))


@pytest.mark.parametrize(
  "objective",
  [
    "cross_entropy()",
    "cross_entropy() | group_dro()",
    "elr()",
    "cross_entropy() | z_error(tau=0.5)",
  ],
)
def test_the_mean_of_local_gradients_is_the_global_gradient(objective):
  def two_steps(axis_name):
    parts = parts_of(objective, recorder(axis_name), axis_name)
    layout = None if axis_name is None else mesh_of("data=8")
    return after(parallel.lay_out(parts, layout, axis_name, 0), 2)

  (local, metrics), (whole, expected) = two_steps("data"), two_steps(None)
  own = local.optimizer.tree
  assert min(np.ptp(g, axis=0).max() for g in jax.tree.leaves(own)) > 1e-3
  assert_close(jax.tree.map(lambda g: np.mean(g, axis=0), own), whole.optimizer.tree)
  assert_close((metrics, local.objective), (expected, whole.objective))
