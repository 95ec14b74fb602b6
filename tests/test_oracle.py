"""The contracts: reductions, Losses, Objectives and their combinations, the Oracle, checks."""

import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrl import check, oracle, reduce
from jaxrl.oracle import Losses, Objective, Oracle

KEY = jax.random.key(0)
INPUTS = jnp.arange(6.0).reshape(3, 2)
BATCH = {"inputs": INPUTS, "labels": jnp.array([0, 1, 1]), "mask": jnp.array([1.0, 0.0, 1.0])}


def forward_at(params):
  return lambda inputs, **options: inputs * params


def apply(objective, batch=BATCH, params=1.0, state=None, key=KEY):
  state = objective.init(key) if state is None else state
  return objective.apply(state, forward_at(params), batch, key)


def mean_output(predictions):
  return jnp.mean(predictions, axis=1)


def counting(scale=1.0):
  """An Objective whose losses grow with its state, the count of its evaluations."""

  def evaluate(state, forward, batch, key):
    values = scale * state * jnp.sum(forward(batch["inputs"]), axis=1)
    return (oracle.masked_losses(values, batch.get("mask")),), state + 1, {"count": state}

  return Objective(lambda key: jnp.ones([]), evaluate)


# reductions

numbers = st.lists(
  st.tuples(st.floats(-5, 5, width=32), st.sampled_from([0.0, 0.5, 2.0])), max_size=6
)


@hypothesis.given(numbers)
def test_the_mean_is_numpys_over_what_counts(pairs):
  values, weights = np.array(pairs, np.float32).reshape(-1, 2).T
  kept = weights > 0
  expected = np.average(values[kept], weights=weights[kept]) if kept.any() else 0.0
  broken = jnp.where(weights == 0, jnp.nan, values)
  np.testing.assert_allclose(reduce.weighted_mean(broken, weights), expected, rtol=1e-4, atol=1e-5)


def test_a_ratio_with_denominator_zero_is_zero_and_so_are_its_gradients():
  value, gradients = jax.value_and_grad(reduce.ratio, argnums=(0, 1))(2.0, jnp.array(0.0))
  assert (value, *gradients) == (0, 0, 0)


def test_group_sums():
  group = jnp.array([2, 0, 2])
  np.testing.assert_array_equal(
    reduce.group_sums(jnp.array([1.0, 2.0, 3.0]), group, 4), [2, 0, 4, 0]
  )


# Losses


def test_a_mask_of_examples_is_spread_over_their_tokens():
  losses = oracle.masked_losses(jnp.ones((2, 3)), jnp.array([1.0, 0.0]))
  np.testing.assert_array_equal(losses.weights, [[1, 1, 1], [0, 0, 0]])
  np.testing.assert_array_equal(losses.norm, losses.weights)


def test_without_a_mask_every_value_counts():
  values = jnp.array([1.0, 3.0])
  assert oracle.total([oracle.masked_losses(values, None)]) == 2


def test_terms_are_reduced_one_by_one_and_added():
  long = oracle.masked_losses(jnp.array([1.0, 3.0]), jnp.array([1.0, 0.0]))
  short = Losses(jnp.array([4.0]), jnp.array([1.0]), jnp.array([8.0]))
  assert oracle.total((long, short)) == 1 + 4 / 8
  assert oracle.total(()) == 0


def test_weights_and_norms_are_constants():
  def total(x):
    return oracle.total([Losses(3 * x, x, x + 1)])

  np.testing.assert_allclose(jax.grad(total)(jnp.array(2.0)), 3 * 2 / (2 + 1))


# Objectives


def test_lift_finds_arrays_by_name_the_models_first():
  def loss(logits, features, index):
    return logits + features + index

  def forward(inputs):
    return {"logits": inputs, "features": 10 * inputs}

  batch = {"inputs": jnp.ones(2), "index": jnp.array([100.0, 200.0]), "features": jnp.zeros(2)}
  terms, state, metrics = oracle.lift(loss).apply((), forward, batch, KEY)
  np.testing.assert_array_equal(terms[0].values, [111, 211])
  assert (state, metrics) == ((), {})


def test_lift_makes_targets_of_labels():
  def loss(predictions, targets):
    return jnp.sum(targets * predictions, axis=1)

  for labels in (jnp.array([0, 1, 1]), jax.nn.one_hot(jnp.array([0, 1, 1]), 2)):
    (term,), _, _ = apply(oracle.lift(loss), {**BATCH, "labels": labels})
    np.testing.assert_array_equal(term.values, [0, 3, 5])


def test_lift_says_what_is_missing():
  def loss(logits, advantages):
    return logits * advantages

  with pytest.raises(ValueError, match=r"loss needs \['advantages'\].*'labels'"):
    apply(oracle.lift(loss))


def test_a_loss_transform_sees_batch_and_outputs_but_not_the_inputs():
  seen = {}

  def update(losses, state, params=None, **extras):
    seen.update(extras)
    return losses._replace(norm=2 * losses.norm), state + 1

  transform = optax.GradientTransformationExtraArgs(lambda params: jnp.zeros([]), update)
  objective = oracle.transform_losses(oracle.lift(mean_output), transform)
  terms, state, _ = apply(objective)
  assert set(seen) == {"labels", "mask", "logits", "predictions"}
  assert oracle.total(terms) == (0.5 + 4.5) / 4
  assert state == ((), 1)


def test_loss_transforms_join_terms_of_one_shape_only():
  identity = optax.with_extra_args_support(optax.identity())
  parts = [(1.0, oracle.lift(mean_output)), (2.0, oracle.lift(mean_output))]
  terms, _, _ = apply(oracle.transform_losses(oracle.weighted_sum(parts), identity))
  assert len(terms) == 1
  assert oracle.total(terms) == 3 * 2.5

  parts.append((1.0, oracle.lift(lambda predictions: predictions)))
  with pytest.raises(ValueError, match="terms of one shape"):
    apply(oracle.transform_losses(oracle.weighted_sum(parts), identity))


def test_a_batch_transform_acts_before_the_model():
  def doubled(key, batch):
    del key
    return {**batch, "inputs": 2 * batch["inputs"]}

  plain, transformed = (
    oracle.total(apply(objective)[0])
    for objective in (
      oracle.lift(mean_output),
      oracle.transform_batch(doubled, oracle.lift(mean_output)),
    )
  )
  assert transformed == 2 * plain


def test_a_weighted_sum_keeps_each_state_and_denominator():
  objective = oracle.weighted_sum([(1.0, counting()), (-0.5, counting(scale=10.0))])
  terms, state, metrics = apply(objective)
  assert oracle.total(terms) == 5 - 0.5 * 50
  assert state == (2, 2)
  assert metrics == {"count": 1}
  terms, state, _ = apply(objective, state=(state[0], jnp.zeros([])))
  assert oracle.total(terms) == 2 * 5
  assert state == (3, 1)


# Oracle


def oracle_of(objective, state, params, batch=BATCH, value=None):
  return oracle.objective_oracle(objective, state, forward_at, batch, KEY, params, value)


def test_every_evaluation_of_a_step_starts_from_the_same_state():
  value_fn = oracle_of(counting(), jnp.array(3.0), jnp.array(1.0))
  assert value_fn(jnp.array(1.0)) == value_fn(jnp.array(1.0)) == 3 * 5


def test_the_parts_of_an_oracle_make_up_the_loss():
  params = jnp.array(2.0)
  value_fn = oracle_of(oracle.lift(mean_output), (), params)
  np.testing.assert_array_equal(value_fn.outputs(params), 2 * INPUTS)
  assert value_fn.loss_of(value_fn.outputs(params)) == value_fn(params)
  np.testing.assert_allclose(value_fn.losses(params), [1.5, 0, 13.5])
  np.testing.assert_allclose(jnp.mean(value_fn.losses(params)), value_fn(params))


def test_the_losses_of_several_terms_are_the_terms():
  parts = [(1.0, oracle.lift(mean_output)), (2.0, oracle.lift(mean_output))]
  value_fn = oracle_of(oracle.weighted_sum(parts), ((), ()), 1.0)
  np.testing.assert_allclose(value_fn.losses(1.0), [2.5, 5])
  assert jnp.sum(value_fn.losses(1.0)) == value_fn(1.0)


def test_the_mean_over_slices_is_the_loss():
  params = jnp.array(2.0)
  value_fn = oracle_of(oracle.lift(mean_output), (), params, batch=BATCH | {"epoch": jnp.ones([])})
  slices = [value_fn.of_slice(params, i, 3) for i in range(3)]
  np.testing.assert_allclose(slices, [3 * 1 / 2, 0, 3 * 9 / 2])
  with pytest.raises(ValueError, match="slices must divide the batch of 3, got 2"):
    value_fn.of_slice(params, 0, 2)


def test_slices_share_the_denominator_of_each_term_also_where_it_depends_on_the_parameters():
  def selected(state, forward, batch, key):
    values = mean_output(forward(batch["inputs"]))
    large = (values > 2).astype(values.dtype)
    every = oracle.masked_losses(values, batch["mask"])
    return (every, Losses(values**2, large, large)), state, {}

  value_fn = oracle_of(Objective(lambda key: (), selected), (), jnp.array(1.0))
  for params in (1.0, 0.3, 0.5):  # means 0.5, 2.5, 4.5 times this; two, none and one are large
    every, large = params * np.array([0.5, 4.5]), params * np.array([2.5, 4.5])
    large = large[large > 2]
    expected = every.mean() + (np.mean(large**2) if large.size else 0)
    of_slice = functools.partial(value_fn.of_slice, jnp.array(params), slices=3)
    np.testing.assert_allclose(jax.lax.map(of_slice, jnp.arange(3)).mean(), expected, rtol=1e-6)


def test_rows_are_a_part_of_the_loss_or_a_loss_of_their_own():
  batch = BATCH | {"mask": jnp.array([1.0, 0.5, 1.0]), "group": jnp.array([0, 1, 1])}
  value_fn = oracle_of(oracle.lift(mean_output), (), params := jnp.array(2.0), batch=batch)
  rows = [value_fn.batch["group"] == group for group in range(3)]  # their means are 1, 5 and 9
  own = [value_fn.of_rows(params, row) for row in rows]
  np.testing.assert_allclose(own, [1, (0.5 * 5 + 9) / 1.5, 0], rtol=1e-6)
  shares = [value_fn.of_rows(params, row, share=True) for row in rows]
  np.testing.assert_allclose(shares, [1 / 2.5, (0.5 * 5 + 9) / 2.5, 0], rtol=1e-6)
  np.testing.assert_allclose(sum(shares), value_fn(params), rtol=1e-6)


def test_rows_of_a_batch_without_mask_or_with_one_of_tokens():
  rows = jnp.array([True, False])
  np.testing.assert_array_equal(oracle.mask_of({}, rows), [1, 0])
  tokens = {"mask": jnp.array([[1.0, 0.5], [1.0, 1.0]])}
  np.testing.assert_array_equal(oracle.mask_of(tokens, rows), [[1, 0.5], [0, 0]])


def test_outputs_need_a_single_forward_pass():
  def twice(state, forward, batch, key):
    values = mean_output(forward(batch["inputs"]) + forward(batch["inputs"]))
    return (oracle.masked_losses(values, None),), state, {}

  value_fn = oracle_of(Objective(lambda key: (), twice), (), 1.0)
  with pytest.raises(TypeError, match="one forward pass, not 2"):
    value_fn.outputs(1.0)


def test_the_value_may_be_computed_elsewhere():
  assert oracle_of(counting(), jnp.ones([]), 1.0, value=lambda params: params + 1)(1.0) == 2


def test_a_part_that_was_not_given_is_a_type_error():
  value_fn = Oracle(jnp.sum, jnp.ones(2))
  for part in ("outputs", "losses"):
    with pytest.raises(TypeError, match=f"no `{part}`"):
      getattr(value_fn, part)(jnp.ones(2))
  with pytest.raises(TypeError, match="no `loss_of`"):
    value_fn.loss_of(jnp.ones(2))


def test_need_oracle_says_what_to_pass():
  value_fn = Oracle(jnp.sum, jnp.ones(2))
  assert oracle.need_oracle("egn", value_fn) is value_fn
  with pytest.raises(TypeError, match=r"egn needs the parts.*jaxrl\.oracle\.Oracle\("):
    oracle.need_oracle("egn", jnp.sum)


def gradient_of_value_fn():
  def update(updates, state, params=None, *, value_fn, **extras):
    return jax.grad(value_fn)(params), state

  return optax.GradientTransformationExtraArgs(lambda params: (), update)


@pytest.mark.parametrize(
  "optimizer",
  [
    optax.masked(gradient_of_value_fn(), {"a": True, "b": False}),
    optax.partition(
      {"ours": gradient_of_value_fn(), "other": optax.identity()}, {"a": "ours", "b": "other"}
    ),
  ],
  ids=["masked", "partition"],
)
def test_closure_methods_work_on_a_part_of_the_tree(optimizer):
  params = {"a": jnp.array(2.0), "b": jnp.array(5.0)}
  value_fn = Oracle(lambda params: params["a"] ** 2 * params["b"], params)
  incoming = {"a": jnp.zeros([]), "b": jnp.array(7.0)}
  updates, _ = optimizer.update(incoming, optimizer.init(params), params, value_fn=value_fn)
  assert updates == {"a": 2 * 2 * 5, "b": 7}


# checks

BAD = [
  (check.at_least, ("x", -1, 0), "x must be at least 0, got -1"),
  (check.at_least, ("x", float("nan"), 0), "x must be at least 0, got nan"),
  (check.above, ("x", 0.0, 0), "x must be above 0, got 0.0"),
  (check.between, ("x", 1.5, 0, 1), "x must be in [0, 1], got 1.5"),
  (check.below, ("x", 1, 0, 1), "x must be in [0, 1), got 1"),
  (check.below, ("x", np.float32(2), 0, 1), "x must be in [0, 1), got"),
  (check.whole, ("k", 2.0, 1), "k must be a whole number of at least 1, got 2.0"),
  (check.whole, ("k", True, 1), "k must be a whole number of at least 1, got True"),
  (check.whole, ("k", 0, 1), "k must be a whole number of at least 1, got 0"),
  (check.one_of, ("kind", "c", ("b", "a")), "kind must be one of ['a', 'b'], got 'c'"),
  (check.params, ("sam", None), "sam needs the parameters"),
  (check.array, ("elr", "index", None), "elr needs `index`"),
]


@pytest.mark.parametrize(("function", "arguments", "message"), BAD)
def test_checks_name_argument_value_and_what_is_allowed(function, arguments, message):
  with pytest.raises(ValueError) as error:
    function(*arguments)
  assert message in str(error.value)


def test_checks_of_kinds_raise_type_errors():
  with pytest.raises(TypeError, match="losses must be a Losses, got 3"):
    check.record("losses", 3, Losses)
  with pytest.raises(TypeError, match="sam evaluates the loss away from params"):
    check.value_fn("sam", None)


@pytest.mark.parametrize("value", [0.5, 1, np.float32(0.5), jnp.array(-3.0), lambda count: -1.0])
def test_checks_let_good_numbers_arrays_and_schedules_pass(value):
  check.at_least("x", value, 0)
  check.above("x", value, 0)
  check.between("x", value, 0, 1)
  check.below("x", value, 0, 1.5)
  jax.jit(lambda x: check.at_least("x", x, 100))(0.0)
