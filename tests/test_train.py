"""The train step: one problem a step, one trace, parts equal to the whole, bounded memory."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrl import models, oracle, train
from objectives.classification.cross_entropy import cross_entropy
from optimizers.sam import sam

CLASSES = 3
INPUTS = (5,)


def batch_of(size, seed=0):
  rng = np.random.default_rng(seed)
  return {
    "inputs": rng.normal(size=(size, *INPUTS)).astype(np.float32),
    "labels": rng.integers(CLASSES, size=size).astype(np.int32),
    "mask": (np.arange(size) % 4 != 3).astype(np.float32),
  }


def mlp(**options):
  return models.from_flax(models.Mlp(CLASSES, widths=(8,), **options))


class Noisy(nn.Module):
  """BatchNorm and dropout in one small model."""

  @nn.compact
  def __call__(self, inputs, train):
    x = nn.BatchNorm(use_running_average=not train, momentum=0.5)(nn.Dense(8)(inputs))
    return nn.Dense(CLASSES)(nn.Dropout(0.5, deterministic=not train)(nn.relu(x)))


def made(model=None, optimizer=None, objective=None, **options):
  return train.make_train(
    model or mlp(),
    objective or oracle.lift(cross_entropy),
    optimizer or optax.sgd(0.1),
    jnp.zeros((1, *INPUTS)),
    **options,
  )


def probe(see):
  """An element that calls `see(gradient, params, extras)` and passes the gradient on."""

  def update(updates, state, params=None, **extras):
    see(updates, params, extras)
    return updates, state

  return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def run(parts, steps=3, size=8):
  state, step = jax.jit(parts.init)(0), jax.jit(parts.step)
  for i in range(steps):
    state, metrics = step(state, batch_of(size, seed=i))
  return state, metrics


@pytest.mark.parametrize("micro_batches", [1, 4])
def test_every_evaluation_of_a_step_sees_the_same_problem(micro_batches):
  seen = {}

  def see(gradient, params, extras):
    assert set(extras) == {"value", "grad", "value_fn"}
    seen["values"] = extras["value"], extras["value_fn"](params), extras["value_fn"](params)
    seen["gradients"] = gradient, jax.grad(extras["value_fn"])(params)

  parts = made(models.from_flax(Noisy()), probe(see), micro_batches=micro_batches)

  @jax.jit
  def values(state, batch):
    parts.step(state, batch)
    return seen

  seen_values = values(jax.jit(parts.init)(0), batch_of(16))
  value, first, second = seen_values["values"]
  assert first == second
  chex.assert_trees_all_close(value, first, rtol=0 if micro_batches == 1 else 1e-6)
  chex.assert_trees_all_close(*seen_values["gradients"], rtol=1e-6)


def test_extra_evaluations_leave_model_state_alone():
  plain = made(models.from_flax(Noisy()), optax.sgd(0.0))
  closure = made(models.from_flax(Noisy()), optax.chain(sam(rho=5.0), optax.sgd(0.0)))
  once, twice = (run(parts, steps=1)[0] for parts in (plain, closure))
  chex.assert_trees_all_equal(once.model, twice.model)
  start = jax.jit(plain.init)(0)
  with pytest.raises(AssertionError):
    chex.assert_trees_all_close(once.model, start.model)


@pytest.mark.parametrize("parts", [2, 4])
@pytest.mark.parametrize("terms", [1, 2])
def test_micro_batches_equal_the_whole_batch(parts, terms):
  objective = oracle.weighted_sum([(0.5, oracle.lift(cross_entropy))] * terms)
  optimizer = optax.chain(sam(), optax.adam(1e-2))
  whole, whole_metrics = run(made(optimizer=optimizer, objective=objective))
  split, metrics = run(made(optimizer=optimizer, objective=objective, micro_batches=parts))
  chex.assert_trees_all_close(whole, split, rtol=2e-5, atol=1e-6)
  chex.assert_trees_all_close(whole_metrics, metrics, rtol=1e-5)


def test_micro_batches_bound_the_peak_memory_of_a_closure_method():
  model = models.from_flax(models.Cnn(10))
  batch = {
    "inputs": np.zeros((256, 8, 8, 1), np.float32),
    "labels": np.zeros(256, np.int32),
    "mask": np.ones(256, np.float32),
  }

  def temporaries(micro_batches):
    parts = train.make_train(
      model,
      oracle.lift(cross_entropy),
      optax.chain(sam(), optax.sgd(0.1)),
      jnp.zeros((1, 8, 8, 1)),
      micro_batches=micro_batches,
    )
    state = jax.eval_shape(parts.init, 0)
    compiled = jax.jit(parts.step).lower(state, batch).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  assert temporaries(16) <= 0.25 * temporaries(1)


def derivative_at_params(of_value_fn, micro_batches):
  """`jvp(of_value_fn(value_fn))` at the step's parameters, along ones."""
  seen = {}

  def see(gradient, params, extras):
    along = optax.tree.ones_like(params)
    seen["tangent"] = jax.jvp(of_value_fn(extras["value_fn"]), (params,), (along,))[1]

  parts = made(optimizer=probe(see), micro_batches=micro_batches)

  @jax.jit
  def tangent(state, batch):
    parts.step(state, batch)
    return seen["tangent"]

  return tangent(jax.jit(parts.init)(0), batch_of(8))


def test_second_derivatives_through_micro_batches():
  whole, parts = (derivative_at_params(jax.grad, micro_batches) for micro_batches in (1, 4))
  chex.assert_trees_all_close(whole, parts, rtol=1e-4, atol=1e-6)
  with pytest.raises(TypeError, match="custom_vjp"):
    derivative_at_params(lambda value_fn: value_fn, 4)


def test_a_batch_that_does_not_divide_is_refused():
  parts = made(micro_batches=3)
  with pytest.raises(ValueError, match="micro_batches must divide the batch of 8, got 3"):
    jax.eval_shape(parts.step, jax.eval_shape(parts.init, 0), batch_of(8))
  with pytest.raises(ValueError, match="micro_batches must be a whole number"):
    made(micro_batches=0)


def test_one_trace_and_a_donated_state():
  parts = made(models.from_flax(Noisy()), optax.chain(sam(), optax.adamw(1e-3)))
  step = jax.jit(chex.assert_max_traces(parts.step, n=1), donate_argnums=0)
  state = jax.jit(parts.init)(0)
  for i in range(3):
    before = state
    state, _ = step(state, batch_of(8, seed=i))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before.params))
  chex.assert_trees_all_equal_shapes_and_dtypes(state, jax.jit(parts.init)(0))
  assert not any(leaf.weak_type for leaf in jax.tree.leaves(state))


def test_the_state_of_another_seed_differs():
  parts = made()
  first, again, other = (jax.jit(parts.init)(seed) for seed in (0, 0, 1))
  chex.assert_trees_all_equal(first, again)
  with pytest.raises(AssertionError):
    chex.assert_trees_all_close(first.params, other.params)


def test_first_bad_leaf_is_named():
  def poisoned(updates, params):
    updates["Dense_1"]["kernel"] *= jnp.nan
    return updates

  poison = optax.stateless(poisoned)
  state, metrics = run(made(optimizer=optax.chain(optax.sgd(0.1), poison)), steps=1)
  assert train.bad_leaf_name(state.params, int(metrics["first_bad_leaf"])) == "Dense_1/kernel"
  assert run(made(), steps=1)[1]["first_bad_leaf"] == -1


class SeededState(train.NamedTuple):
  """A state with a seed, metrics and an answer that is not the parameters."""

  seed: jax.Array
  metrics: dict[str, jax.Array]


class AnchoredState(train.NamedTuple):
  """A state with a tree shaped like the parameters."""

  anchor: dict[str, jax.Array]


def eval_params(state, params):
  """This file defines both states, so its answer is used for them."""
  if isinstance(state, AnchoredState):
    return jax.tree.map(lambda w, anchor: w + anchor, params, state.anchor)
  return jax.tree.map(lambda w: w + state.metrics["shift"], params)


def seeded():
  def init(params):
    return SeededState(jnp.zeros([], jnp.int32), {"shift": jnp.zeros([])})

  def update(updates, state, params=None, **extras):
    return updates, state._replace(metrics={"shift": jnp.ones([])})

  return optax.GradientTransformationExtraArgs(init, update)


def test_seeds_metrics_and_answers_of_methods_are_honoured():
  parts = made(optimizer=optax.chain(seeded(), optax.sgd(0.1)))
  assert jax.jit(parts.init)(7).optimizer[0].seed == 7
  state, metrics = run(parts, steps=1)
  assert [name for name in metrics if name.endswith("shift")]
  answer = train.eval_params(state.optimizer, state.params)
  chex.assert_trees_all_close(answer, jax.tree.map(lambda w: w + 1, state.params))


def test_the_answer_of_a_masked_method_leaves_the_rest_alone():
  def anchored():
    def init(params):
      return AnchoredState(params)

    return optax.GradientTransformation(init, lambda updates, state, params=None: (updates, state))

  optimizer = optax.masked(anchored(), {"kernel": True, "bias": False})
  params = {"kernel": jnp.ones(2), "bias": jnp.ones(2)}
  answer = train.eval_params(optimizer.init(params), jax.tree.map(lambda w: 5 * w, params))
  chex.assert_trees_all_equal(answer, {"kernel": jnp.full(2, 6.0), "bias": jnp.full(2, 5.0)})


def test_mixed_precision_keeps_float32_parameters_and_losses():
  seen = []
  base = models.from_flax(Noisy())

  def apply(params, model_state, inputs, key, train):
    seen.extend(leaf.dtype for leaf in jax.tree.leaves((params, inputs)))
    return base.apply(params, model_state, inputs, key, train)

  parts = made(base._replace(apply=apply), compute_dtype=jnp.bfloat16)
  state, metrics = run(parts, steps=2)
  assert set(seen) == {jnp.dtype(jnp.bfloat16)}
  assert metrics["loss"].dtype == jnp.float32
  assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {jnp.dtype(jnp.float32)}
  assert {leaf.dtype for leaf in jax.tree.leaves(state.model)} == {jnp.dtype(jnp.float32)}


def test_terms_of_a_sum_share_one_pass_through_the_model():
  base, passes = mlp(), []

  def apply(*arguments):
    passes.append(arguments)
    return base.apply(*arguments)

  objective = oracle.weighted_sum([(1.0, oracle.lift(cross_entropy))] * 3)
  parts = made(base._replace(apply=apply), objective=objective)
  jax.eval_shape(parts.step, jax.eval_shape(parts.init, 0), batch_of(8))
  assert len(passes) == 1


def test_evaluation_counts_examples_not_batches():
  parts = made()
  state, evaluate = jax.jit(parts.init)(0), jax.jit(parts.evaluate)
  whole, padded = batch_of(8), batch_of(8)
  whole["mask"] = np.ones(8, np.float32)
  halves = [{k: v[i::2] for k, v in whole.items()} for i in range(2)]
  one = train.mean_metrics([evaluate(state, whole)])
  two = train.mean_metrics([evaluate(state, half) for half in halves])
  chex.assert_trees_all_close(one, two, rtol=1e-6)
  kept = {k: v[padded["mask"] == 1] for k, v in padded.items()}
  chex.assert_trees_all_close(
    train.mean_metrics([evaluate(state, padded)]),
    train.mean_metrics([evaluate(state, kept)]),
    rtol=1e-6,
  )
