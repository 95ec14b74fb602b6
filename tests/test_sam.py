"""SAM by workers, groups of workers and slices: against NumPy, each other, and by traffic."""

import functools
import math

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxrl import models, oracle, parallel, spec, train
from optimizers.fisher_mask import fisher_mask
from optimizers.sam import sam
from tests import hlo, tiers

pytestmark = tiers.unless_changed("optimizers/sam.py", "optimizers/_sharpness.py")

RHO = 0.3
AXES = ("data", "group")
POINT = np.array([1.0, -2.0, 0.5])


# Four workers, two by two, with a regression each: against NumPy.


def regressions():
  """Inputs and targets of each worker; the first one's gradient at POINT is exactly zero."""
  rng = np.random.default_rng(0)
  inputs = rng.integers(-3, 4, size=(4, 5, 3)).astype(np.float32)
  targets = rng.normal(size=(4, 5)).astype(np.float32)
  targets[0] = inputs[0] @ POINT
  return inputs, targets


def gradient_by_hand(point, inputs, targets):
  return inputs.T @ (inputs @ point - targets) / len(targets)


def sam_by_hand(groups, scales=1, chosen=1, ascent_steps=1):
  """The mean of the workers' gradients, each uphill along the mean gradient of its group."""
  data = list(zip(*regressions(), strict=True))
  gradients = []
  for group in groups:
    point = POINT
    for _ in range(ascent_steps):
      ascent = scales * np.mean([gradient_by_hand(point, *data[i]) for i in group], axis=0)
      length = np.linalg.norm(ascent)
      point = point + (RHO * scales * chosen * ascent / length if length else 0)
    gradients += [gradient_by_hand(point, *data[i]) for i in group]
  return np.mean(gradients, axis=0)


def loss_of(inputs, targets):
  def loss(params):
    point = jnp.concatenate([params["head"], params["tail"]])
    return jnp.mean((inputs @ point - targets) ** 2) / 2

  return loss


def params_at(point):
  point = jnp.asarray(point, jnp.float32)
  return {"head": point[:1], "tail": point[1:]}


def worker(optimizer, axis_name, inputs, targets):
  """What SAM makes on one worker of its own regression, as one vector."""
  params, value_fn = params_at(POINT), loss_of(inputs, targets)
  local = jax.grad(value_fn)(parallel.vary(params, axis_name))
  updates, _ = optimizer.update(local, optimizer.init(params), params, value_fn=value_fn)
  return jnp.concatenate([updates["head"], updates["tail"]])


def under_shard_map(optimizer):
  mesh = jax.make_mesh((2, 2), AXES, (AxisType.Auto,) * 2, devices=jax.devices()[:4])

  def on_worker(inputs, targets):
    return worker(optimizer, AXES, inputs[0], targets[0])

  # Replicated by its type, or check_vma refuses it.
  run = jax.shard_map(on_worker, mesh=mesh, in_specs=PartitionSpec(AXES), out_specs=PartitionSpec())
  return jax.jit(run)(*regressions())


def under_vmap(optimizer):
  run = functools.partial(worker, optimizer, AXES)
  for name in reversed(AXES):
    run = jax.vmap(run, axis_name=name)
  inputs, targets = regressions()
  return jax.jit(run)(inputs.reshape(2, 2, 5, 3), targets.reshape(2, 2, 5)).reshape(4, 3)


@pytest.mark.parametrize("under", [under_shard_map, under_vmap])
@pytest.mark.parametrize(
  ("sync", "groups"),
  [
    ((), [[0], [1], [2], [3]]),
    ("group", [[0, 1], [2, 3]]),
    (("data",), [[0, 2], [1, 3]]),
    (AXES, [[0, 1, 2, 3]]),
  ],
)
def test_workers_perturb_by_the_gradient_of_their_group(under, sync, groups):
  made = under(sam(RHO, axis_name=AXES, sync=sync))
  expected = np.broadcast_to(sam_by_hand(groups), made.shape)
  np.testing.assert_allclose(made, expected, rtol=1e-5)


# Two workers, by variants of the method.

PAIR = (1, 3)
VARIANTS = {
  "plain": ({}, {}),
  "adaptive": ({"adaptive": True, "eta": 0.1}, {"scales": np.abs(POINT) + 0.1}),
  "ascent": ({"ascent_steps": 3}, {"ascent_steps": 3}),
  # The third entry is the smallest of the mean gradient, though not of each worker's.
  "mask": ({"mask": fisher_mask(0.7)}, {"chosen": np.array([1, 1, 0])}),
}


def pair_under_shard_map(optimizer):
  mesh = jax.make_mesh((2,), ("w",), (AxisType.Auto,), devices=jax.devices()[:2])

  def on_worker(inputs, targets):
    return worker(optimizer, "w", inputs[0], targets[0])

  run = jax.shard_map(on_worker, mesh=mesh, in_specs=PartitionSpec("w"), out_specs=PartitionSpec())
  return jax.jit(run)(*(part[list(PAIR)] for part in regressions()))


def pair_under_pmap(optimizer):
  run = jax.pmap(functools.partial(worker, optimizer, "w"), axis_name="w")
  return run(*(part[list(PAIR)] for part in regressions()))


@pytest.mark.parametrize("under", [pair_under_shard_map, pair_under_pmap])
@pytest.mark.parametrize(("sync", "groups"), [((), [[1], [3]]), ("w", [[1, 3]])])
@pytest.mark.parametrize("variant", VARIANTS)
def test_two_workers_by_hand(under, sync, groups, variant):
  options, by_hand = VARIANTS[variant]
  made = under(sam(RHO, axis_name="w", sync=sync, **options))
  expected = np.broadcast_to(sam_by_hand(groups, **by_hand), made.shape)
  np.testing.assert_allclose(made, expected, rtol=1e-5)


def test_the_mask_of_workers_is_that_of_their_mean_gradient():
  data = list(zip(*regressions(), strict=True))
  gradients = [gradient_by_hand(POINT, *data[i]) for i in PAIR]
  assert np.argmin(np.abs(np.mean(gradients, axis=0))) == 2
  assert {int(np.argmin(np.abs(g))) for g in gradients} != {2}


def test_choosing_a_mask_leaves_sharded_parameters_where_they_are():
  mesh = jax.make_mesh((8,), ("fsdp",), (AxisType.Auto,))
  split = NamedSharding(mesh, PartitionSpec("fsdp"))
  whole = NamedSharding(mesh, PartitionSpec())
  mask, params = fisher_mask(0.1), {"w": jnp.ones((64, 32))}
  state = mask.init(params)
  where = jax.tree.map(lambda leaf: split if leaf.ndim else whole, (params, state))
  choose = jax.jit(lambda g, s: mask.update(g, s, g), in_shardings=where)
  found = hlo.collectives(choose.lower(params, state).compile().as_text())
  assert found and all(message.bytes <= 4 * 64 for message in found)


# Slices.


@pytest.mark.parametrize("variant", ["plain", "adaptive", "ascent"])
def test_slices_perturb_on_their_own(variant):
  options, by_hand = VARIANTS[variant]
  inputs, targets = map(jnp.asarray, regressions())

  def of_slice(params, index, slices):
    assert slices == 4
    return loss_of(inputs[index], targets[index])(params)

  params, optimizer = params_at(POINT), sam(RHO, slices=4, **options)
  value_fn = oracle.Oracle(jnp.sum, params, of_slice=of_slice)
  updates, _ = optimizer.update(params, optimizer.init(params), params, value_fn=value_fn)
  made = jnp.concatenate([updates["head"], updates["tail"]])
  np.testing.assert_allclose(made, sam_by_hand([[0], [1], [2], [3]], **by_hand), rtol=1e-5)


# Whole train steps.

ROWS, SIDE, CLASSES, STEPS = 16, 4, 3, 3


def batch():
  """Examples that count very differently by worker: the last two of eight not at all."""
  rng = np.random.default_rng(1)
  mask = rng.choice([0, 0.5, 1], size=ROWS).astype(np.float32)
  mask[-4:] = 0
  return {
    "inputs": rng.normal(size=(ROWS, SIDE, SIDE, 1)).astype(np.float32),
    "labels": rng.integers(CLASSES, size=ROWS).astype(np.int32),
    "mask": mask,
  }


def parts_with(**options):
  return train.make_train(
    models.make("mlp", CLASSES),
    spec.objective("cross_entropy()"),
    optax.chain(sam(RHO, **options), optax.sgd(0.1, momentum=0.9)),
    jnp.zeros((1, SIDE, SIDE, 1)),
    axis_name=options.get("axis_name"),
  )


@functools.cache
def start():
  return jax.jit(parts_with().init)(0)


@functools.cache
def trained(mesh="", **options):
  """Parameters after a few steps of SAM, and the program of a step."""
  step = parts_with(**options).step
  if mesh:
    step = parallel.per_worker_step(step, parallel.make_mesh(mesh), options["axis_name"])
  state = start()
  program = jax.jit(step).lower(state, batch()).compile()
  for _ in range(STEPS):
    state, _ = program(state, batch())
  return state.params, program


def assert_same(one, other):
  for a, b in zip(*map(jax.tree.leaves, (one[0], other[0])), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-6)


def test_slices_on_one_device_are_workers():
  workers = trained("data=8", axis_name="data")
  assert_same(trained(slices=8), workers)
  whole, _ = trained()
  moved = jax.tree.map(lambda a, b: float(jnp.max(jnp.abs(a - b))), whole, workers[0])
  assert max(jax.tree.leaves(moved)) > 1e-3, "one perturbation and eight should differ"


def test_slices_on_one_device_are_groups_of_workers():
  grouped = trained("data=4,group=2", axis_name=AXES, sync=("group",))
  assert_same(trained(slices=4), grouped)


def test_a_perturbation_of_all_workers_is_that_of_the_batch():
  assert_same(trained("data=8", axis_name="data", sync="data"), trained())
  assert_same(trained("data=4,group=2", axis_name=AXES, sync=AXES), trained())


def test_workers_can_cut_their_part_into_slices():
  assert_same(trained("data=8", axis_name="data", slices=2), trained(slices=16))


@pytest.mark.parametrize(
  ("mesh", "options", "messages"),
  [
    ("data=8", {"axis_name": "data"}, 1),
    ("data=8", {"axis_name": "data", "slices": 2}, 1),
    ("data=8", {"axis_name": "data", "sync": "data"}, 2),
    ("data=4,group=2", {"axis_name": AXES, "sync": ("group",)}, 2),
  ],
  ids=["local", "slices", "synchronised", "groups"],
)
def test_a_step_reduces_one_gradient_and_one_more_where_synchronised(mesh, options, messages):
  params, program = trained(mesh, **options)
  gradient = sum(4 * math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
  found = hlo.collectives(program.as_text())
  assert {message.kind for message in found} == {"all-reduce"}
  dense, scalars = divmod(sum(message.bytes for message in found), gradient)
  assert dense == messages
  assert scalars <= 64
  assert all(message.bytes <= 4 for message in found if message.within)


class Noisy(nn.Module):
  """BatchNorm and dropout in one small model."""

  @nn.compact
  def __call__(self, inputs, train):
    x = nn.Dense(8)(inputs.reshape(len(inputs), -1))
    x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
    return nn.Dense(CLASSES)(nn.Dropout(0.5, deterministic=not train)(x))


@functools.cache
def noisy_step(optimizer, seed=0):
  """The state after one step of the noisy model, whose updates are what `optimizer` makes."""
  parts = train.make_train(
    models.from_flax(Noisy()),
    spec.objective("cross_entropy()"),
    spec.optimizer(optimizer),
    jnp.zeros((1, SIDE, SIDE, 1)),
  )
  state = parts.init(0)._replace(seed=jnp.int32(seed))
  return jax.jit(parts.step)(state, batch())[0]


def test_all_evaluations_of_a_step_share_their_dropout():
  plain, still = noisy_step("identity()"), noisy_step("sam(0.0, ascent_steps=2)")
  chex.assert_trees_all_close(plain.params, still.params, atol=1e-6)
  with pytest.raises(AssertionError):  # another key shows
    chex.assert_trees_all_close(plain.params, noisy_step("identity()", 1).params, atol=1e-3)


def test_batch_statistics_are_those_of_the_first_evaluation():
  plain, far = noisy_step("identity()"), noisy_step("sam(5.0, ascent_steps=2)")
  chex.assert_trees_all_close(plain.model, far.model, atol=1e-6)
  with pytest.raises(AssertionError):
    chex.assert_trees_all_close(plain.params, far.params, atol=1e-3)


# Errors.


def updated(optimizer, value_fn=jnp.sum):
  params = jnp.ones(3)
  return optimizer.update(params, optimizer.init(params), params, value_fn=value_fn)


def test_without_workers_the_axis_is_named():
  with pytest.raises(ValueError, match="axis_name='data' is no axis of workers here: sam needs"):
    updated(sam(axis_name="data"))


def test_gradients_that_workers_share_are_refused():
  mesh = parallel.make_mesh("data=8")

  def on_worker(row):
    del row
    return updated(sam(axis_name="data"))

  with pytest.raises(ValueError, match="sam needs each worker's own gradient"):
    jax.shard_map(on_worker, mesh=mesh, in_specs=PartitionSpec("data"), out_specs=PartitionSpec())(
      jnp.arange(8)
    )


def test_slices_need_an_oracle_that_has_them():
  with pytest.raises(TypeError, match="sam needs the parts of the loss"):
    updated(sam(slices=2))
  with pytest.raises(TypeError, match="no `of_slice`"):
    updated(sam(slices=2), oracle.Oracle(jnp.sum, jnp.ones(3)))


def test_slices_divide_the_batch():
  with pytest.raises(ValueError, match="slices must divide the batch of 16, got 3"):
    trained(slices=3)
