"""EF21 over workers: one code under vmap, shard_map and pmap, whole runs and checkpoints."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrl import parallel, spec, train
from jaxrl.checkpoint import CheckpointError, Checkpoints
from jaxrl.models import Model
from jaxrl.oracle import PerWorker
from optimizers.compressors.top_k import top_k
from optimizers.econtrol import econtrol
from optimizers.ef14 import ef14
from optimizers.ef21 import ef21
from optimizers.ef21_w import ef21_w
from tests import tiers

pytestmark = tiers.unless_changed("optimizers/ef14", "optimizers/ef21", "optimizers/econtrol")

WORKERS, STEPS, RATE = 8, 6, 0.1
SHAPES = {"bias": (5,), "gain": (), "kernel": (4, 5)}
ENTRIES = {"bias": 2, "gain": 1, "kernel": 6}  # 30 %, rounded up
rng = np.random.default_rng(0)
CENTRES = {name: rng.normal(size=(WORKERS, *shape)) for name, shape in SHAPES.items()}
SCALES = {name: rng.uniform(0.2, 3, size=(WORKERS, *shape)) for name, shape in SHAPES.items()}


def as_float32(tree):
  return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), tree)


def start():
  return {name: jnp.full(shape, 0.5) for name, shape in SHAPES.items()}


def gradient(params, own):
  """Of a bowl of the worker's own."""
  centres, scales = own
  return jax.tree.map(lambda x, c, s: s * (x - c), params, centres, scales)


def largest(x, k):
  flat = x.reshape(-1)
  kept = np.argsort(np.abs(flat))[flat.size - k :]
  out = np.zeros_like(flat)
  out[kept] = flat[kept]
  return out.reshape(x.shape)


def by_hand(init):
  """EF21's points in NumPy, all workers in one loop: G is their mean, taken anew each step."""
  points = [{name: np.full(shape, 0.5) for name, shape in SHAPES.items()}]
  estimates = {name: np.zeros((WORKERS, *shape)) for name, shape in SHAPES.items()}
  for step in range(STEPS):
    x = points[-1]
    for name in SHAPES:
      for i in range(WORKERS):
        g = SCALES[name][i] * (x[name] - CENTRES[name][i])
        if step == 0 and init == "full":
          estimates[name][i] = g
        else:
          estimates[name][i] += largest(g - estimates[name][i], ENTRIES[name])
    points.append({name: x[name] - RATE * estimates[name].mean(axis=0) for name in SHAPES})
  return points[1:]


def worker_axes(state, worker, other):
  def axis(node):
    return worker if isinstance(node, PerWorker) else other

  return jax.tree.map(axis, state, is_leaf=lambda node: isinstance(node, PerWorker))


def make(mapped_by, init):
  """Optimizer, first state and the step of all workers."""
  optimizer = optax.chain(ef21(top_k(0.3), axis_name="data", init=init), optax.sgd(RATE))
  state = parallel.with_worker_axis(optimizer.init(start()), WORKERS)

  def of_worker(carry, own):
    params, state = carry
    updates, state = optimizer.update(gradient(params, own), state, params)
    return (optax.apply_updates(params, updates), state), state[0].metrics

  if mapped_by == "shard_map":
    step = jax.jit(
      parallel.per_worker_step(_squeezed(of_worker), parallel.make_mesh("data=8"), "data")
    )
  else:
    mapping = jax.vmap if mapped_by == "vmap" else jax.pmap
    axes = (None, worker_axes(state, 0, None))
    step = mapping(of_worker, in_axes=(axes, 0), out_axes=(axes, None), axis_name="data")
  return (start(), state), jax.jit(step) if mapped_by == "vmap" else step


def _squeezed(of_worker):
  """Under shard_map a worker's share of the batch keeps its first axis."""
  return lambda carry, own: of_worker(carry, jax.tree.map(lambda x: x[0], own))


@pytest.mark.parametrize("init", ["full", "compressed"])
@pytest.mark.parametrize("mapped_by", ["vmap", "shard_map", "pmap"])
def test_the_same_numbers_however_workers_are_mapped(mapped_by, init):
  carry, step = make(mapped_by, init)
  own = as_float32((CENTRES, SCALES))
  for expected in by_hand(init):
    carry, metrics = step(carry, own)
    for name in SHAPES:
      np.testing.assert_allclose(carry[0][name], expected[name], rtol=2e-6, atol=2e-6)
  assert metrics == {"bytes_sent": 6 * sum(ENTRIES.values())}


def network():
  """One hidden layer, by hand."""

  def init(key, inputs):
    first, second = jax.random.split(key)
    hidden = jax.random.normal(first, (inputs.shape[-1], 9))
    return {"hidden": hidden, "output": jax.random.normal(second, (9, 4))}, ()

  def apply(params, state, inputs, key, train):
    del key, train
    return jnp.tanh(inputs @ params["hidden"]) @ params["output"], state

  return Model(init, apply)


def make_run(optimizer, axis_name="data", workers=WORKERS):
  """First state, jitted step and trace counter of a train step on a small network."""
  parts = train.make_train(
    network(),
    spec.objective("cross_entropy()"),
    optimizer,
    jnp.zeros((1, 6)),
    axis_name=axis_name,
  )
  traces = []
  if axis_name is None:
    return parts.init(0), jax.jit(parts.step), traces
  mesh = jax.make_mesh(
    (workers,), ("data",), (jax.sharding.AxisType.Auto,), devices=jax.devices()[:workers]
  )

  def step(state, batch):
    traces.append(None)
    return parts.step(state, batch)

  state = parallel.with_worker_axis(parts.init(0), workers)
  shardings = parallel.state_shardings(state, mesh, "data")
  mapped = parallel.per_worker_step(step, mesh, "data")
  return jax.device_put(state, shardings), jax.jit(mapped), traces


def unequal_batch():
  """Workers with 0, 1, 2 and 4 of their four examples counted."""
  rng = np.random.default_rng(1)
  counted = np.array([0, 1, 2, 4, 4, 3, 1, 2])
  return {
    "inputs": rng.normal(size=(32, 6)).astype(np.float32),
    "labels": rng.integers(4, size=32).astype(np.int32),
    "mask": (np.arange(4) < counted[:, None]).astype(np.float32).reshape(-1),
    "index": np.arange(32, dtype=np.int32),
  }


def recorder(axis_name):
  """Puts the incoming gradient into its state, and then averages it over the workers."""

  def update(updates, state, params=None):
    del state, params
    mean = updates if axis_name is None else jax.lax.pmean(updates, axis_name)
    return mean, PerWorker(updates)

  zeros = functools.partial(jax.tree.map, jnp.zeros_like)
  return optax.GradientTransformation(lambda params: PerWorker(zeros(params)), update)


def test_the_mean_of_local_gradients_is_the_global_gradient():
  state, step, _ = make_run(recorder("data"))
  local = step(state, unequal_batch())[0].optimizer.tree
  state, step, _ = make_run(recorder(None), axis_name=None)
  whole = step(state, unequal_batch())[0].optimizer.tree
  assert jax.tree.leaves(local)[0].shape[0] == WORKERS
  for own, expected in zip(jax.tree.leaves(local), jax.tree.leaves(whole), strict=True):
    assert np.ptp(own, axis=0).max() > 1e-3
    np.testing.assert_allclose(np.mean(own, axis=0), expected, atol=1e-6)


def after(steps, optimizer, **options):
  state, step, traces = make_run(optimizer, **options)
  for _ in range(steps):
    state, _ = step(state, unequal_batch())
  return state, step, traces


@pytest.mark.parametrize("init", ["full", "compressed"])
def test_with_all_entries_it_is_distributed_sgd(init):
  whole = ef21(top_k(1.0), axis_name="data", init=init)
  state, _, traces = after(5, optax.chain(whole, optax.sgd(0.5)))
  expected, *_ = after(5, optax.sgd(0.5), axis_name=None)
  assert len(traces) == 1
  for a, b in zip(jax.tree.leaves(state.params), jax.tree.leaves(expected.params), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-6)


def test_one_worker_on_a_mesh_is_one_without_axis():
  run = optax.chain(ef21(top_k(0.1), axis_name="data"), optax.sgd(0.5))
  state, *_ = after(4, run, workers=1)
  expected, *_ = after(4, optax.chain(ef21(top_k(0.1)), optax.sgd(0.5)), axis_name=None)
  for a, b in zip(jax.tree.leaves(state.params), jax.tree.leaves(expected.params), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-6)


def sparse():
  return optax.chain(ef21(top_k(0.05), axis_name="data"), optax.adam(1e-2))


def test_checkpoints_keep_each_workers_estimate_and_refuse_other_workers(tmp_path):
  state, step, _ = after(3, sparse())
  hidden = state.optimizer[0].estimate.tree["hidden"]
  assert hidden.shape[0] == WORKERS and hidden.sharding.spec == jax.P("data")
  assert np.ptp(hidden, axis=0).max() > 0
  with Checkpoints(tmp_path, {}) as checkpoints:
    checkpoints.save(3, state)
    restored = checkpoints.restore_latest(state).state
    fewer, *_ = make_run(sparse(), workers=4)
    with pytest.raises(CheckpointError, match=r"is of 8 workers, now there are 4.*Go on with 8"):
      checkpoints.restore_latest(fewer)
  expected, actual = step(state, unequal_batch()), step(restored, unequal_batch())
  for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
    assert a.sharding == b.sharding
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
  "method",
  [
    lambda: ef14(top_k(0.05), axis_name="data"),
    lambda: ef21(top_k(0.05), axis_name="data", momentum=0.1, downlink=top_k(0.5)),
    lambda: ef21_w(top_k(0.05), range(1, WORKERS + 1), axis_name="data"),
    lambda: econtrol(top_k(0.05), axis_name="data"),
  ],
)
def test_state_of_workers_comes_back_to_as_many_alone(method, tmp_path):
  state, *_ = make_run(method())
  fewer, *_ = make_run(method(), workers=4)
  with Checkpoints(tmp_path, {}) as checkpoints:
    checkpoints.save(1, state)
    restored = checkpoints.restore_latest(state).state
    with pytest.raises(CheckpointError, match=r"is of 8 workers, now there are 4.*Go on with 8"):
      checkpoints.restore_latest(fewer)
  jax.tree.map(np.testing.assert_array_equal, restored, state)


@pytest.mark.parametrize("axis_name", [None, "data"])
def test_with_fsdp_an_estimate_lies_as_its_parameter_does(axis_name):
  optimizer = ef21(top_k(0.3), axis_name=axis_name)
  mesh = parallel.make_mesh("data=4,fsdp=2")
  state = optimizer.init(start())
  front = () if axis_name is None else ("data",)
  if axis_name is not None:
    state = parallel.with_worker_axis(state, 4)
  estimate = jax.device_put(state, parallel.state_shardings(state, mesh, axis_name)).estimate.tree
  assert estimate["kernel"].sharding.spec == jax.P(*front, "fsdp")
  assert estimate["gain"].sharding.spec == jax.P(*front)


ODD_TREES = [
  {},
  {"empty": np.zeros((8, 0, 3)), "scalar": np.arange(8.0)},
  {"masked": optax.MaskedNode(), "vector": np.arange(24.0).reshape(8, 3)},
]


@pytest.mark.parametrize("scale", [0, 1e-30, 1, 1e30])
@pytest.mark.parametrize("init", ["full", "compressed"])
def test_odd_trees_and_any_size_of_gradient_in_bfloat16(init, scale):
  optimizer = ef21(top_k(0.4), axis_name="data", init=init)
  for tree in ODD_TREES:
    gradients = jax.tree.map(lambda x: jnp.asarray(scale * x, jnp.bfloat16), tree)
    state = optimizer.init(jax.tree.map(lambda x: x[0], gradients))
    assert all(leaf.dtype != jnp.bfloat16 for leaf in jax.tree.leaves(state))
    state = parallel.with_worker_axis(state, WORKERS)
    axes = worker_axes(state, 0, None)
    update = jax.vmap(
      optimizer.update, in_axes=(0, axes), out_axes=(None, axes), axis_name="data", axis_size=8
    )
    for _ in range(4):
      updates, state = update(gradients, state)
    for u, g in zip(jax.tree.leaves(updates), jax.tree.leaves(gradients), strict=True):
      assert u.dtype == jnp.bfloat16 and u.shape == g.shape[1:]
      mean = np.mean(np.asarray(g, np.float64), axis=0)
      np.testing.assert_allclose(np.asarray(u, np.float64), mean, rtol=1e-2)


def test_updates_keep_small_changes_where_params_are_bfloat16():
  optimizer = ef21(top_k(1.0), init="compressed")
  one = jnp.ones(2, jnp.bfloat16)
  state = optimizer.init(one)
  for _ in range(3):
    updates, state = optimizer.update(one * 2.0**-12, state)
  assert updates.dtype == jnp.bfloat16 and state.mean.dtype == jnp.float32
  np.testing.assert_array_equal(updates.astype(np.float32), 2.0**-12)


def test_an_axis_that_is_not_there():
  optimizer = ef21(top_k(1), axis_name="data")
  state = optimizer.init(jnp.ones(3))
  with pytest.raises(ValueError, match=r"axis_name='data' is no axis.*--gradients local"):
    optimizer.update(jnp.ones(3), state)


def test_a_gradient_that_is_not_the_workers_own():
  optimizer = ef21(top_k(1), axis_name="data")
  state = parallel.with_worker_axis(optimizer.init(jnp.ones(3)), WORKERS)

  def step(state, batch):
    shared = jax.lax.pmean(batch[0], "data")
    return optimizer.update(shared, state)[::-1]

  mapped = parallel.per_worker_step(step, parallel.make_mesh("data=8"), "data")
  with pytest.raises(ValueError, match=r"each worker's own gradient.*axis_name='data'"):
    mapped(state, jnp.ones((8, 3)))
