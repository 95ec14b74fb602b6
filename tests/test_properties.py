"""The checks find what they are for: methods with a planted fault fail the check it belongs to."""

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
import pytest

from tests import objective_properties, optimizer_properties
from tests.cases import ObjectiveRow, OptimizerRow
from tests.properties import entry_of, wrapped

pytestmark = pytest.mark.full


class State(NamedTuple):
  seed: jax.Array


@jax.tree_util.register_pytree_node_class
class Opaque:
  """A pytree that serialization does not know."""

  def __init__(self, count):
    self.count = count

  def tree_flatten(self):
    return (self.count,), None

  @classmethod
  def tree_unflatten(cls, aux, children):
    return cls(*children)


def transformation(change, init=lambda params: (), next_state=lambda state: state):
  """A transformation of updates by `change(updates, state, params, extras)`."""

  def update(updates, state, params=None, **extras):
    return change(updates, state, params, extras), next_state(state)

  return optax.GradientTransformationExtraArgs(init, update)


def scaled(updates, scale):
  return jax.tree.map(lambda u: scale * u, updates)


def without_extras(rho):
  return optax.GradientTransformation(lambda params: (), lambda u, state, params=None: (u, state))


def weakly_typed_state(rho):
  return transformation(
    lambda u, state, params, extras: u,
    init=lambda params: jnp.asarray(1.0),
    next_state=lambda state: jnp.array(0, int) + 1,
  )


def concrete_init(rho):
  return transformation(
    lambda u, state, params, extras: u, init=lambda params: jnp.full(1, float(params["gain"]))
  )


def python_counter(rho):
  count = itertools.count(1)
  return transformation(lambda u, state, params, extras: scaled(u, next(count)))


def unused_seed(rho):
  return transformation(lambda u, *_: u, init=lambda params: State(jnp.zeros([], jnp.int32)))


def unsafe_normalisation(rho):
  return transformation(lambda u, *_: scaled(u, 1 / optax.tree.norm(u)))


def ascent(rho):
  return transformation(lambda u, *_: scaled(u, -1))


def opaque_state(rho):
  return transformation(
    lambda u, state, *_: scaled(u, state.count),
    init=lambda params: Opaque(jnp.ones([])),
    next_state=lambda state: Opaque(state.count + 1),
  )


def unchecked(rho):
  return transformation(lambda u, *_: u)


def first_leaf(rho):
  return transformation(lambda u, *_: scaled(u, 1 + 0 * jnp.sum(jax.tree.leaves(u)[0])))


def always_float32(rho):
  return transformation(lambda u, *_: optax.tree.cast(u, jnp.float32))


def state_of_params_dtype(rho):
  return transformation(lambda u, *_: u, init=lambda params: jax.tree.map(jnp.zeros_like, params))


def branch_on_number(rho):
  return transformation(lambda u, *_: scaled(u, 2 if rho > 0 else 1))


def whole_gradient(rho):
  return transformation(
    lambda u, state, params, extras: (
      scaled(u, jnp.sum(extras["grad"]["dense"]["bias"])) if "gain" in extras["grad"] else u
    )
  )


def empty_array_in_state(rho):
  return transformation(lambda u, *_: u, init=lambda params: jnp.zeros(0))


def twice_the_cost(rho):
  def change(updates, state, params, extras):
    gradients = [jax.grad(extras["value_fn"])(params) for _ in range(2)]
    return jax.tree.map(lambda a, b: a + jnp.sin(b), *gradients)

  return transformation(change)


def doubled(rho):
  return transformation(lambda u, *_: scaled(u, 2))


OPTIMIZERS = [
  ("contract", without_extras),
  ("one_trace", weakly_typed_state),
  ("init_by_shape", concrete_init),
  ("jit_is_eager", python_counter),
  ("deterministic", unused_seed),
  ("any_size_of_gradient", unsafe_normalisation),
  ("loss_falls", ascent),
  ("flax_round_trip", opaque_state),
  ("bad_arguments", unchecked),
  ("odd_trees", first_leaf),
  ("bfloat16", always_float32),
  ("bfloat16", state_of_params_dtype),
  ("float64", always_float32),
  ("inject_hyperparams", branch_on_number),
  ("masked", whole_gradient),
  ("orbax_round_trip", empty_array_in_state),
  ("cost", twice_the_cost),
  ("limits", doubled),
]


@pytest.mark.parametrize(("check", "factory"), OPTIMIZERS)
def test_a_faulty_optimizer_is_found(check, factory):
  row = OptimizerRow(
    "sam(rho=0.05) | sgd(0.1)",
    method="sam",
    limits=(("sam(rho=0)", "identity()"),),
    bad={"sam(rho=-1)": "rho must be at least 0"},
    evaluations=1,
  )
  with wrapped(entry_of(row), lambda original, rho=0.05, eps=0: factory(rho)):
    _assert_found(optimizer_properties, row, check)


class Noise(NamedTuple):
  seed: jax.Array
  count: jax.Array


def noise(rho):
  """Random as DESIGN wants it: an int32 seed in the state, folded with the count."""

  def update(updates, state, params=None, **extras):
    key = jax.random.fold_in(jax.random.key(state.seed), state.count)
    noisy = jax.tree.map(lambda u: u + rho * jax.random.normal(key, u.shape, u.dtype), updates)
    return noisy, state._replace(count=state.count + 1)

  zero = jnp.zeros([], jnp.int32)
  return optax.GradientTransformationExtraArgs(lambda params: Noise(zero, zero), update)


@pytest.mark.parametrize("check", ["deterministic", "vmap_is_loop", "sharded"])
def test_a_random_optimizer_passes(check):
  row = OptimizerRow("sam(rho=0.05) | sgd(0.1)", method="sam")
  with wrapped(entry_of(row), lambda original, rho=0.05, eps=0: noise(rho)):
    _check(optimizer_properties, check)(optimizer_properties.Bench(row))


def naive(logits, labels):
  return jnp.sum(-jnp.log(1 - jax.nn.softmax(logits)), axis=1)


def by_position(logits, labels):
  return jnp.arange(len(labels)) * jnp.take_along_axis(logits, labels[:, None], 1)[:, 0]


def centred(logits, labels):
  values = jnp.take_along_axis(logits, labels[:, None], 1)[:, 0]
  return (values - jnp.mean(values)) ** 2


def of_any_rank(logits, labels):
  return jnp.sum(jax.nn.log_softmax(logits).reshape(len(labels), -1), axis=1)


@jax.custom_jvp
def _wrong_slope(x):
  return x**2


_wrong_slope.defjvp(lambda primals, tangents: (primals[0] ** 2, tangents[0]))


def wrong_gradient(logits, labels):
  return jnp.sum(_wrong_slope(logits), axis=1)


def drifting(logits, labels, count=itertools.count(1)):  # noqa: B008
  return next(count) * jnp.sum(logits, axis=1)


def scalar(logits, labels):
  return jnp.mean(logits)


LOSSES = [
  ("shapes", scalar),
  ("value_of_oracle", drifting),
  ("large_logits", naive),
  ("masked_examples", centred),
  ("permutation", by_position),
  ("micro_batches", centred),
  ("numerical_gradient", wrong_gradient),
  ("wrong_rank", of_any_rank),
]


@pytest.mark.parametrize(("check", "loss"), LOSSES)
def test_a_faulty_loss_is_found(check, loss):
  row = ObjectiveRow("cross_entropy()", method="cross_entropy")
  with wrapped(entry_of(row), lambda original, logits, labels: loss(logits, labels)):
    _assert_found(objective_properties, row, check)


def by_sum_of_weights(losses, state):
  return losses._replace(norm=losses.norm / jnp.sum(losses.norm)), state


def with_gradient_into_the_state(losses, state):
  return losses, state + jnp.sum(losses.values)


def growing_state(losses, state):
  return losses, jnp.append(state, 0.0)


TRANSFORMS = [
  ("empty_batch", by_sum_of_weights),
  ("constants", with_gradient_into_the_state),
  ("one_trace", growing_state),
]


@pytest.mark.parametrize(("check", "update"), TRANSFORMS)
def test_a_faulty_loss_transform_is_found(check, update):
  row = ObjectiveRow("cross_entropy() | group_dro()", method="group_dro")
  transform = optax.GradientTransformationExtraArgs(
    lambda params: jnp.zeros(()) if check != "one_trace" else jnp.zeros(1),
    lambda losses, state, params=None, **extras: update(losses, state),
  )
  with wrapped(entry_of(row), lambda original, num_groups: transform):
    _assert_found(objective_properties, row, check)


def _assert_found(properties, row, check):
  with pytest.raises((Exception, pytest.fail.Exception)):  # JAX's own errors, too
    _check(properties, check)(properties.Bench(row))


def _check(properties, name):
  return next(check.run for check in properties.checks if check.name == name)
