"""The properties of every objective. Each check gets a Bench: a row on a tiny linear model."""

import functools
import importlib
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrl import oracle, spec
from jaxrl.catalogue import LOSS, LOSS_TRANSFORM, catalogue
from tests import glossary
from tests.cases import ObjectiveRow, names_in
from tests.properties import (
  KNOWN,
  Checks,
  assert_close,
  assert_finite,
  assert_identical,
  entry_of,
  stacked,
  static_arguments,
  types_of,
  wrapped,
)

checks = Checks()

Arrays = dict[str, jax.Array]


class Evaluation(NamedTuple):
  """Everything that one evaluation of an objective shows."""

  value: jax.Array
  gradient: Any
  state: Any
  gradient_of_state: Any
  terms: tuple[oracle.Losses, ...]
  metrics: dict[str, jax.Array]
  oracle_value: jax.Array
  contributions: jax.Array


class Bench:
  """A row's objective on a batch that holds what its functions use, compiled once."""

  def __init__(self, row: ObjectiveRow):
    self.row = row
    self.entry = entry_of(row)
    self.names = array_names(row.spec)
    self.objective = spec.objective(row.spec, **KNOWN)
    self.params = glossary.parameters()
    self.batch = glossary.batch(self.names)
    self.key = jax.random.key(0)
    self.state = self.objective.init(self.key)
    self.traces = 0
    self._evaluate = jax.jit(self._traced)

  def _traced(self, params: Any, state: Any, batch: Arrays) -> Evaluation:
    self.traces += 1
    return self.by_eager(params, state, batch)

  def by_eager(self, params: Any, state: Any, batch: Arrays) -> Evaluation:
    """One evaluation, not compiled."""
    return evaluation(self.objective, self.names, params, state, batch, self.key)

  def evaluate(self, params: Any = None, state: Any = None, **changed: jax.Array) -> Evaluation:
    """One compiled evaluation, at the bench's params, state and batch unless told otherwise."""
    params = self.params if params is None else params
    state = self.state if state is None else state
    return self._evaluate(params, state, {**self.batch, **changed})


def array_names(text: str) -> frozenset[str]:
  """Glossary names that the functions in a spec use."""
  ours = [entry for entry in catalogue() if entry.name in names_in(text)]
  used = frozenset().union(*(entry.identifiers for entry in ours))
  return used & set(glossary.GLOSSARY)


def evaluation(
  objective: oracle.Objective,
  names: frozenset[str],
  params: Any,
  state: Any,
  batch: Arrays,
  key: jax.Array,
) -> Evaluation:
  """Value, gradients, terms and next state of an objective, and the same by its Oracle."""

  def forward_at(params):
    return glossary.forward_at(params, names)

  def loss(params):
    terms, after, metrics = objective.apply(state, forward_at(params), batch, key)
    return oracle.total(terms), (terms, after, metrics)

  def sum_of_state(params):
    after = objective.apply(state, forward_at(params), batch, key)[1]
    return sum((jnp.sum(x.astype(float)) for x in jax.tree.leaves(after)), start=jnp.zeros(()))

  (value, (terms, after, metrics)), gradient = jax.value_and_grad(loss, has_aux=True)(params)
  value_fn = oracle.objective_oracle(objective, state, forward_at, batch, key, params)
  parts = value_fn.losses(params)
  contributions = jnp.mean(parts) if len(terms) == 1 else jnp.sum(parts)
  return Evaluation(
    value=value,
    gradient=gradient,
    state=after,
    gradient_of_state=jax.grad(sum_of_state)(params),
    terms=terms,
    metrics=metrics,
    oracle_value=value_fn(params),
    contributions=contributions,
  )


def seen(result: Evaluation) -> tuple[Any, ...]:
  """What a permutation or a split of the batch must leave alone."""
  return result.value, result.gradient, result.state


@checks(core=True)
def shapes(bench: Bench) -> None:
  """Terms are Losses of three arrays of one shape; the value is a scalar."""
  result = bench.evaluate()
  assert isinstance(result.terms, tuple)
  for term in result.terms:
    assert isinstance(term, oracle.Losses)
    assert term.values.ndim >= 1
    assert {array.shape for array in term} == {term.values.shape}
    assert all(jnp.issubdtype(array.dtype, jnp.floating) for array in term)
    assert np.all(np.asarray(term.weights) >= 0)
    assert np.all(np.asarray(term.norm) >= 0)
  assert result.value.shape == ()
  assert all(jnp.shape(metric) == () for metric in result.metrics.values())


@checks(core=True)
def one_trace(bench: Bench) -> None:
  """The state keeps its structure, dtypes and weak types, so that a step is traced once."""
  first = bench.evaluate()
  second = bench.evaluate(state=first.state)
  assert types_of(first.state) == types_of(second.state) == types_of(bench.state)
  assert set(first.metrics) == set(second.metrics)
  assert bench.traces == 1


@checks(core=True)
def value_of_oracle(bench: Bench) -> None:
  """`value_fn(params) == value` exactly, and the oracle's parts add up to it."""
  for state in (bench.state, bench.evaluate().state):
    result = bench.evaluate(state=state)
    assert_identical(result.oracle_value, result.value)
    assert_close(result.contributions, result.value, bench.row.tolerance)


@checks(core=True)
def deterministic(bench: Bench) -> None:
  """The same key gives the same bits."""
  assert_identical(bench.evaluate(), bench.evaluate())


@checks()
def jit_is_eager(bench: Bench) -> None:
  """Compiled and uncompiled evaluations agree."""
  expected = bench.by_eager(bench.params, bench.state, bench.batch)
  assert_close(bench.evaluate(), expected, bench.row.tolerance)


@checks(core=True)
def large_logits(bench: Bench) -> None:
  """Outputs up to 30 in size give finite values and gradients."""
  outputs = glossary.forward_at(bench.params)(bench.batch["inputs"])["logits"]
  stretch = 30 / jnp.max(jnp.abs(outputs))
  params = jax.tree.map(lambda leaf: stretch * leaf, bench.params)
  for sign in (1, -1):
    result = bench.evaluate(jax.tree.map(lambda leaf, s=sign: s * leaf, params))
    assert_finite(result)
    assert_finite(bench.evaluate(state=result.state))


@checks(core=True)
def empty_batch(bench: Bench) -> None:
  """With all weights zero, value and gradients are zero."""
  result = bench.evaluate(mask=jnp.zeros_like(bench.batch["mask"]))
  assert_finite(result)
  assert result.value == 0
  _assert_zero(result.gradient)


@checks(core=True)
def masked_examples(bench: Bench) -> None:
  """What stands in examples of weight zero has no influence, nor leaves a trace in the state."""
  mask = bench.batch["mask"].at[::3].set(0)
  other = glossary.batch(bench.names, seed=1)
  keep = ("mask", "index")
  garbage = {
    name: bench.batch[name].at[::3].set(100 * array[::3] if name == "inputs" else array[::3])
    for name, array in other.items()
    if name not in keep and array.ndim
  }
  clean, dirty = bench.evaluate(mask=mask), bench.evaluate(mask=mask, **garbage)
  assert_close(seen(dirty), seen(clean), bench.row.tolerance)


@checks(core=True)
def permutation(bench: Bench) -> None:
  """The order of the examples does not matter."""
  order = np.random.default_rng(0).permutation(glossary.SIZES["B"])
  shuffled = {name: array[order] for name, array in bench.batch.items() if array.ndim}
  assert_close(seen(bench.evaluate(**shuffled)), seen(bench.evaluate()), bench.row.tolerance)


@checks(core=True)
def constants(bench: Bench) -> None:
  """No gradient flows into the next state, nor through arrays that the row calls stopped."""
  first = bench.evaluate()
  for result in (first, bench.evaluate(state=first.state)):
    _assert_zero(result.gradient_of_state)
  for name in bench.row.stopped:
    _assert_zero(_gradient_by_argument(bench, name))


@checks(core=True)
def wrong_rank(bench: Bench) -> None:
  """An array with an axis too many raises, or makes no difference because nothing uses it."""
  for name in sorted(bench.names - {"mask"}):
    try:
      value = _value_with_extra_axis(bench, name)
    except (AssertionError, ValueError, TypeError):
      continue
    assert_close(value, bench.evaluate().value, bench.row.tolerance)


@checks(core=True)
def bad_arguments(bench: Bench) -> None:
  """Each bad argument raises an error that says what is allowed."""
  for text, message in bench.row.bad.items():
    with pytest.raises((ValueError, TypeError)) as error:
      objective = spec.objective(text, **KNOWN)  # a loss sees its arguments when it is called
      jax.eval_shape(lambda: _applied(objective, bench.names, bench.batch))  # noqa: B023
    assert message in str(error.value)


@checks()
def vmap_is_loop(bench: Bench) -> None:
  """Members of a vmapped run, each with its own key, are those of a loop."""

  def evaluate(params, key):
    state = bench.objective.init(key)
    result = evaluation(bench.objective, bench.names, params, state, bench.batch, key)
    return seen(result)

  one = jax.jit(evaluate)
  members = [glossary.parameters(seed) for seed in range(3)]
  keys = jax.random.split(bench.key, 3)
  loop = [one(params, key) for params, key in zip(members, keys, strict=True)]
  vmapped = jax.jit(jax.vmap(evaluate))(stacked(members), keys)
  assert_close(vmapped, stacked(loop), 10 * bench.row.tolerance)


@checks()
def bfloat16(bench: Bench) -> None:
  """Parameters and inputs in bfloat16 give about the value of float32, and finite gradients."""
  half = jax.tree.map(_to_bfloat16, (bench.params, bench.batch))
  full = jax.tree.map(lambda leaf: _to_bfloat16(leaf).astype(leaf.dtype), bench.batch)
  params = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), half[0])
  evaluate = jax.jit(bench.by_eager)
  result = evaluate(half[0], bench.state, half[1])
  assert types_of(result.state) == types_of(bench.state)
  assert types_of(result.gradient) == types_of(half[0])
  assert_finite(result)
  expected = bench.evaluate(params, **full).value
  np.testing.assert_allclose(
    float(result.value), float(expected), rtol=0.03 * bench.row.tolerance, atol=0.03
  )


@checks()
def numerical_gradient(bench: Bench) -> None:
  """In float64, the gradient is the one of central differences, constants held constant."""
  with jax.enable_x64(True):
    params, batch = glossary.parameters(), glossary.batch(bench.names)
    state = bench.objective.init(bench.key)

    def value(params):
      forward = glossary.forward_at(params, bench.names)
      return oracle.total(bench.objective.apply(state, forward, batch, bench.key)[0])

    frozen = with_constants_of(value, params)
    differences = [_central_difference(frozen, params, seed) for seed in range(3)]
    gradient = jax.jit(jax.grad(value))(params)
    slopes = [_slope(gradient, _direction(params, seed)) for seed in range(3)]
  np.testing.assert_allclose(slopes, differences, rtol=1e-6, atol=1e-8)


@checks()
def micro_batches(bench: Bench) -> None:
  """Sums over micro-batches, the state passing through in order, give the whole batch's result."""
  size = glossary.SIZES["B"] // 4
  evaluate = jax.jit(bench.by_eager)
  state, totals = bench.state, None
  for start in range(0, glossary.SIZES["B"], size):
    rows = {name: array for name, array in bench.batch.items() if array.ndim}
    micro = {name: array[start : start + size] for name, array in rows.items()}
    result = evaluate(bench.params, state, {**bench.batch, **micro})
    state = result.state
    part = [oracle.sums(term) for term in result.terms]
    totals = part if totals is None else jax.tree.map(jnp.add, totals, part)
  value = sum(numerator / denominator for numerator, denominator in totals)
  whole = bench.evaluate()
  assert_close((value, state), (whole.value, whole.state), bench.row.tolerance)


@checks()
def limits(bench: Bench) -> None:
  """Specs that describe the same objective give the same values, gradients for three steps."""
  for pair in bench.row.limits:
    runs = []
    for text in pair:
      other = Bench(ObjectiveRow(text, method=bench.row.method))
      runs.append(_three_values(other, bench.batch))
    assert_close(*runs, 10 * bench.row.tolerance)


@checks()
def inject_hyperparams(bench: Bench) -> None:
  """The numeric hyper-parameters of a loss transform may live in the state."""
  if bench.entry.kind != LOSS_TRANSFORM:
    return

  def inject(factory, *args, **kwargs):
    static = static_arguments(factory)
    return optax.inject_hyperparams(factory, static_args=static)(*args, **kwargs)

  with wrapped(bench.entry, inject):
    injected = Bench(bench.row)
  assert optax.tree.get_all_with_path(injected.state, "hyperparams")
  values = [_three_values(each, bench.batch) for each in (injected, bench)]
  assert_close(*values, 10 * bench.row.tolerance)


@checks(devices=True)
def sharded(bench: Bench) -> None:
  """A batch sharded over eight devices gives the values and gradients of one device."""
  mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
  spread = jax.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
  rows = {name: array for name, array in bench.batch.items() if array.ndim}
  batch = {**bench.batch, **jax.device_put(rows, spread)}
  result = jax.jit(bench.by_eager)(bench.params, bench.state, batch)
  assert_close(seen(result), seen(bench.evaluate()), 10 * bench.row.tolerance)


def with_constants_of(value: Callable[[Any], jax.Array], point: Any) -> Callable[[Any], jax.Array]:
  """`value`, with everything under `stop_gradient` held at what it is at `point`."""

  def constants(params):
    found = []
    with mock.patch.object(jax.lax, "stop_gradient", lambda x: found.append(x) or x):
      value(params)
    return found

  def frozen(params, constants):
    replay = iter(constants)
    with mock.patch.object(jax.lax, "stop_gradient", lambda x: next(replay)):
      return value(params)

  return functools.partial(jax.jit(frozen), constants=jax.jit(constants)(point))


def _assert_zero(tree: Any) -> None:
  assert all(np.all(np.asarray(leaf) == 0) for leaf in jax.tree.leaves(tree))


def _direction(params: Any, seed: int) -> Any:
  rng = np.random.default_rng(seed)
  return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape)), params)


def _central_difference(function: Callable[[Any], jax.Array], params: Any, seed: int) -> float:
  step, direction = 1e-6, _direction(params, seed)
  ahead, behind = (
    function(jax.tree.map(lambda p, d, s=sign: p + s * step * d, params, direction))
    for sign in (1, -1)
  )
  return float((ahead - behind) / (2 * step))


def _slope(gradient: Any, direction: Any) -> float:
  products = jax.tree.map(lambda g, d: jnp.sum(g * d), gradient, direction)
  return float(sum(jax.tree.leaves(products)))


def _to_bfloat16(leaf: jax.Array) -> jax.Array:
  return leaf.astype(jnp.bfloat16) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf


def _three_values(bench: Bench, batch: Arrays) -> list[tuple[jax.Array, Any]]:
  evaluate = jax.jit(bench.by_eager)
  state, values = bench.state, []
  for seed in range(3):
    result = evaluate(glossary.parameters(seed), state, batch)
    state = result.state
    values.append((result.value, result.gradient))
  return values


def _gradient_by_argument(bench: Bench, name: str) -> jax.Array:
  assert bench.entry.kind == LOSS, "stopped= names arguments of a loss"
  loss = getattr(importlib.import_module(bench.entry.module), bench.entry.name)
  arrays = glossary.arrays(set(inspect.signature(loss).parameters) & set(glossary.GLOSSARY))
  return jax.grad(lambda array: jnp.sum(loss(**{**arrays, name: array})))(arrays[name])


def _applied(objective: oracle.Objective, names: frozenset[str], batch: Arrays) -> Any:
  key = jax.random.key(0)
  forward = glossary.forward_at(glossary.parameters(), names)
  return objective.apply(objective.init(key), forward, batch, key)[0]


def _value_with_extra_axis(bench: Bench, name: str) -> jax.Array:
  batch = {key: array[..., None] if key == name else array for key, array in bench.batch.items()}

  def forward(inputs, **options):
    outputs = glossary.forward_at(bench.params, bench.names)(inputs, **options)
    return {key: leaf[..., None] if key == name else leaf for key, leaf in outputs.items()}

  def value(batch):
    return oracle.total(bench.objective.apply(bench.state, forward, batch, bench.key)[0])

  return jax.jit(value)(batch)
