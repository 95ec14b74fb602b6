"""GAM by workers, in micro-batches, where gradients vanish, and what it costs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from jaxrl import parallel, spec, train
from optimizers.gam import gam, gam_exact, gam_sam
from tests import tiers

pytestmark = tiers.unless_changed("optimizers/gam.py", "optimizers/_sharpness.py")

FACTORIES = {
  "gam": functools.partial(gam, rho=0.5, rho_prime=0.1, gamma=0.5),
  "gam_exact": functools.partial(gam_exact, rho=0.5, alpha=0.7),
  "gam_sam": functools.partial(gam_sam, rho=0.5, alpha=0.7),
}
EVERY = pytest.mark.parametrize("factory", FACTORIES.values(), ids=FACTORIES)


def loss_of(inputs, targets):
  def loss(params):
    return jnp.mean(jnp.log(jnp.cosh(inputs @ params["w"] + params["b"] - targets)))

  return loss


def regressions():
  """Inputs and targets of eight workers."""
  rng = np.random.default_rng(0)
  return rng.normal(size=(8, 5, 3)).astype(np.float32), rng.normal(size=(8, 5)).astype(np.float32)


PARAMS = {"w": jnp.array([1.0, -2.0, 0.5]), "b": jnp.array(0.25)}


def updates_of(optimizer, value_fn, gradient):
  return optimizer.update(gradient, optimizer.init(PARAMS), PARAMS, value_fn=value_fn)[0]


def on_worker(optimizer, inputs, targets):
  value_fn = loss_of(inputs, targets)
  return updates_of(optimizer, value_fn, jax.grad(value_fn)(parallel.vary(PARAMS, "data")))


def under_shard_map(optimizer):
  def one(inputs, targets):
    return on_worker(optimizer, inputs[0], targets[0])

  # Replicated by its type, or check_vma refuses it.
  mesh = parallel.make_mesh("data=8")
  run = jax.shard_map(one, mesh=mesh, in_specs=PartitionSpec("data"), out_specs=PartitionSpec())
  return jax.jit(run)(*regressions())


def under_vmap(optimizer):
  run = jax.vmap(functools.partial(on_worker, optimizer), axis_name="data")
  return jax.tree.map(lambda leaf: leaf[3], jax.jit(run)(*regressions()))


@EVERY
@pytest.mark.parametrize("under", [under_shard_map, under_vmap])
def test_workers_go_uphill_on_their_own_and_average_what_they_find(factory, under):
  parts = []
  for inputs, targets in zip(*regressions(), strict=True):
    value_fn = loss_of(inputs, targets)
    parts.append(updates_of(factory(), value_fn, jax.grad(value_fn)(PARAMS)))
  expected = jax.tree.map(lambda *leaves: np.mean(leaves, axis=0), *parts)
  made = under(factory(axis_name="data"))
  for name, value in expected.items():
    np.testing.assert_allclose(made[name], value, rtol=2e-5, atol=1e-6)


@EVERY
def test_gradients_that_workers_share_are_refused(factory):
  def worker(row):
    return updates_of(factory(axis_name="data"), jnp.sum, PARAMS), row

  mesh, axis = parallel.make_mesh("data=8"), PartitionSpec("data")
  with pytest.raises(ValueError, match="needs each worker's own gradient"):
    jax.shard_map(worker, mesh=mesh, in_specs=axis, out_specs=axis)(jnp.arange(8))


@EVERY
def test_without_workers_the_axis_is_named(factory):
  with pytest.raises(ValueError, match="axis_name='data' is no axis of workers here"):
    updates_of(factory(axis_name="data"), jnp.sum, PARAMS)


@EVERY
def test_without_the_loss_or_parameters_the_error_says_what_to_pass(factory):
  optimizer = factory()
  with pytest.raises(TypeError, match="evaluates the loss away from params"):
    optimizer.update(PARAMS, optimizer.init(PARAMS), PARAMS)
  with pytest.raises(ValueError, match="needs the parameters"):
    optimizer.update(PARAMS, optimizer.init(PARAMS), value_fn=jnp.sum)


@EVERY
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_minimum_stays_where_it_is(factory, dtype):
  w = jnp.zeros(3, dtype)
  optimizer = factory()
  updates, _ = optimizer.update(w, optimizer.init(w), w, value_fn=lambda w: jnp.sum(w**2))
  assert updates.dtype == dtype
  assert not updates.any()


def test_the_example_of_a_chain_and_its_spec_are_the_same():
  value_fn = loss_of(*map(lambda x: x[0], regressions()))
  gradient = jax.grad(value_fn)(PARAMS)
  chain = optax.chain(gam(rho=0.2), optax.adamw(1e-3))
  one = updates_of(chain, value_fn, gradient)
  other = updates_of(spec.optimizer("gam(rho=0.2) | adamw(1e-3)"), value_fn, gradient)
  jax.tree.map(np.testing.assert_array_equal, one, other)


def test_bfloat16_parameters_get_the_update_of_float32_ones_to_their_precision():
  narrow = jax.tree.map(lambda x: x.astype(jnp.bfloat16), PARAMS)
  inputs, targets = (x[0] for x in regressions())
  value_fn = loss_of(inputs, targets)
  for factory in FACTORIES.values():
    updates = updates_of(factory(), value_fn, jax.grad(value_fn)(PARAMS))
    gradient = jax.grad(value_fn)(narrow)
    optimizer = factory()
    small, _ = optimizer.update(gradient, optimizer.init(narrow), narrow, value_fn=value_fn)
    for name, value in updates.items():
      np.testing.assert_allclose(small[name].astype(np.float32), value, atol=0.03)


@EVERY
def test_micro_batches_make_the_update_of_the_whole_batch(factory):
  inputs, targets = regressions()

  def sums(params, carry, part):
    return ((len(part[1]) * loss_of(*part)(params),), (jnp.asarray(5.0),)), (carry, ())

  def in_parts(params):
    return train.accumulate(sums, params, (), (inputs, targets))[0]

  whole = loss_of(inputs.reshape(-1, 3), targets.reshape(-1))
  gradient = jax.grad(whole)(PARAMS)
  made, expected = (
    jax.jit(functools.partial(updates_of, factory(), value_fn))(gradient)
    for value_fn in (in_parts, whole)
  )
  for name, value in expected.items():
    np.testing.assert_allclose(made[name], value, rtol=1e-5, atol=1e-6)
