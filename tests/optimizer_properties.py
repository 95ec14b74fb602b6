"""The properties of every optimizer. Each check gets a Bench: a row, built and compiled once."""

import contextlib
import functools
import inspect
import tempfile
from collections.abc import Iterator
from typing import Any, NamedTuple

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint
import pytest

from jaxrl import oracle, parallel, spec
from tests import problem
from tests.cases import OptimizerRow
from tests.properties import (
  KNOWN,
  Checks,
  assert_close,
  assert_finite,
  assert_identical,
  differs,
  entry_of,
  stacked,
  static_arguments,
  types_of,
  wrapped,
)

checks = Checks()


class Carry(NamedTuple):
  """What passes from step to step."""

  state: Any
  params: Any


class Result(NamedTuple):
  """What a step shows."""

  updates: Any
  value: jax.Array


class Bench:
  """A row's optimizer on the test problem, with one compiled, donating step."""

  def __init__(self, row: OptimizerRow):
    self.row = row
    self.entry = entry_of(row)
    self.elements: list[optax.GradientTransformationExtraArgs] = []
    with wrapped(self.entry, self._record):
      self.optimizer = spec.optimizer(row.spec, **KNOWN)
    self.params = problem.parameters(row.params)
    self.data = problem.data(self.params)
    self.traces = 0
    self._step = jax.jit(self._traced, donate_argnums=0)

  def _record(self, factory, *args, **kwargs):
    self.elements.append(factory(*args, **kwargs))
    return self.elements[-1]

  def _traced(self, carry: Carry, batch: problem.Data) -> tuple[Carry, Result]:
    self.traces += 1
    return step_of(self.optimizer, carry, batch)

  @functools.cached_property
  def start(self) -> Carry:
    """The state before the first step."""
    return Carry(self.optimizer.init(self.params), self.params)

  def step(self, carry: Carry, scale: float = 1.0) -> tuple[Carry, Result]:
    """One compiled step; `scale` multiplies the loss."""
    batch = self.data._replace(scale=jnp.asarray(scale, self.data.scale.dtype))
    return self._step(jax.tree.map(jnp.copy, carry), batch)

  def run(self, steps: int) -> list[tuple[Carry, Result]]:
    """The first steps of a run."""
    return run(self.step, self.start, steps)

  @functools.cached_property
  def reference(self) -> list[tuple[Carry, Result]]:
    """The first five steps."""
    return self.run(5)


def step_of(optimizer: Any, carry: Carry, batch: problem.Data) -> tuple[Carry, Result]:
  """One step as the train step takes it: extras are value, grad and value_fn."""
  return step_with(optimizer, carry, problem.oracle(carry.params, batch))


def step_with(optimizer: Any, carry: Carry, value_fn: oracle.Oracle) -> tuple[Carry, Result]:
  """One step, the loss being `value_fn`."""
  state, params = carry
  value, grad = jax.value_and_grad(value_fn)(params)
  updates, state = optimizer.update(grad, state, params, value=value, grad=grad, value_fn=value_fn)
  return Carry(state, optax.apply_updates(params, updates)), Result(updates, value)


def run(step: Any, carry: Carry, steps: int) -> list[tuple[Carry, Result]]:
  """Carry and result after each of `steps` steps."""
  done = []
  for _ in range(steps):
    carry, result = step(carry)
    done.append((carry, result))
  return done


def updates_of(done: list[tuple[Carry, Result]]) -> list[Any]:
  """The updates of each step."""
  return [result.updates for _, result in done]


def jitted(optimizer: Any, batch: problem.Data) -> Any:
  """A compiled step of another optimizer, or on other data."""
  return jax.jit(lambda carry: step_of(optimizer, carry, batch))


def started(optimizer: Any, params: Any) -> Carry:
  """A new optimizer at `params`."""
  return Carry(optimizer.init(params), params)


def has_seed(state: Any) -> bool:
  """Whether a state has a field `seed`."""
  return any(_names_seed(path) for path, _ in jax.tree_util.tree_leaves_with_path(state))


def with_seed(state: Any, seed: Any) -> Any:
  """`state` with every `seed` field replaced."""

  def replaced(path, leaf):
    return jnp.asarray(seed, leaf.dtype) if _names_seed(path) else leaf

  return jax.tree_util.tree_map_with_path(replaced, state)


def _names_seed(path: tuple[Any, ...]) -> bool:
  return any(getattr(key, "name", None) == "seed" for key in path)


@checks(core=True)
def contract(bench: Bench) -> None:
  """The factory gives a GradientTransformationExtraArgs whose updates look like params."""
  assert bench.elements
  for element in bench.elements:
    assert isinstance(element, optax.GradientTransformationExtraArgs)
    parameters = inspect.signature(element.update).parameters.values()
    assert any(p.kind == p.VAR_KEYWORD for p in parameters), "update needs **extra_args"
  (_, result), *_ = bench.reference
  assert types_of(result.updates) == types_of(bench.params)


@checks(core=True)
def one_trace(bench: Bench) -> None:
  """The state keeps its structure, dtypes and weak types, so that a step is traced once."""
  for carry, _ in bench.reference:
    assert types_of(carry.state) == types_of(bench.start.state)
  assert bench.traces == 1


@checks(core=True)
def init_by_shape(bench: Bench) -> None:
  """`init` can be evaluated on shapes alone, and takes no random key."""
  shapes = jax.eval_shape(bench.optimizer.init, bench.params)
  assert types_of(shapes) == types_of(bench.start.state)


@checks()
def jit_is_eager(bench: Bench) -> None:
  """Compiled and uncompiled updates agree."""
  expected = run(lambda carry: step_of(bench.optimizer, carry, bench.data), bench.start, 2)
  actual = updates_of(bench.reference[:2])
  assert_close(actual, updates_of(expected), bench.row.tolerance)


@checks(core=True)
def deterministic(bench: Bench) -> None:
  """The same start gives the same bits; another seed gives other updates."""
  assert_identical(bench.run(3), bench.reference[:3])
  if has_seed(bench.start.state):
    reseeded = Carry(with_seed(bench.start.state, 12345), bench.params)
    assert differs(updates_of(run(bench.step, reseeded, 3)), updates_of(bench.reference[:3]))


@checks(core=True)
def any_size_of_gradient(bench: Bench) -> None:
  """Zero, tiny and huge gradients give finite updates, and don't spoil the state."""
  for scale in (0.0, 1e-30, 1e20):
    carry, result = bench.step(bench.start, scale)
    assert_finite(result.updates)
    _, after = bench.step(Carry(carry.state, bench.params))
    assert_finite(after.updates)


@checks(core=True)
def loss_falls(bench: Bench) -> None:
  """The loss is lower after 50 steps."""
  values = [float(result.value) for _, result in bench.run(50)]
  assert np.all(np.isfinite(values))
  assert (min(values[-5:]) < 0.99 * values[0]) == bench.row.falls, values


@checks(core=True)
def flax_round_trip(bench: Bench) -> None:
  """A state that went through Flax's serialization gives the next step bit for bit."""
  carry = bench.reference[1][0]
  stored = flax.serialization.to_bytes(carry.state)
  state = flax.serialization.from_bytes(bench.start.state, stored)
  state = jax.tree.map(jnp.asarray, state)
  assert types_of(state) == types_of(carry.state)
  assert_identical(bench.step(Carry(state, carry.params)), bench.step(carry))


@checks(core=True)
def bad_arguments(bench: Bench) -> None:
  """Each bad argument raises an error that says what is allowed."""
  for text, message in bench.row.bad.items():
    with pytest.raises((ValueError, TypeError)) as error:
      spec.optimizer(text, **KNOWN)
    assert message in str(error.value)


@checks()
def orbax_round_trip(bench: Bench) -> None:
  """A state that went through an Orbax checkpoint gives the next step bit for bit."""
  carry = bench.reference[1][0]
  with tempfile.TemporaryDirectory() as folder, orbax.checkpoint.StandardCheckpointer() as saver:
    saver.save(f"{folder}/state", carry._asdict())
    saver.wait_until_finished()
    shapes = jax.tree.map(orbax.checkpoint.utils.to_shape_dtype_struct, carry._asdict())
    restored = Carry(**saver.restore(f"{folder}/state", shapes))
  assert_identical(bench.step(restored), bench.step(carry))


@checks()
def donation(bench: Bench) -> None:
  """A state made by `jit(init)` can be donated together with the parameters."""
  params = jax.tree.map(jnp.copy, bench.params)
  carry = Carry(jax.jit(bench.optimizer.init)(params), params)
  _, result = bench._step(carry, bench.data)
  assert_close(result.updates, bench.reference[0][1].updates, bench.row.tolerance)


@checks()
def scan(bench: Bench) -> None:
  """Fifty steps under `lax.scan` are those of a loop."""

  def body(carry, _):
    return step_of(bench.optimizer, carry, bench.data)

  _, results = jax.jit(lambda carry: jax.lax.scan(body, carry, length=50))(bench.start)
  assert_finite(results)
  first = jax.tree.map(lambda leaf: leaf[:5], results)
  expected = stacked([result for _, result in bench.reference])
  assert_close(first, expected, 10 * bench.row.tolerance)


@checks()
def vmap_is_loop(bench: Bench) -> None:
  """Members of a vmapped run, each with its own start and seed, are those of a loop."""
  members = []
  for seed in range(3):
    params = problem.parameters(bench.row.params, seed)
    members.append(Carry(with_seed(bench.optimizer.init(params), seed), params))
  step = functools.partial(step_of, bench.optimizer, batch=bench.data)
  one = jax.jit(step)
  loop = [run(one, member, 2) for member in members]
  vmapped = run(jax.jit(jax.vmap(step)), stacked(members), 2)
  assert_close(vmapped, stacked(loop), 10 * bench.row.tolerance)


@checks()
def odd_trees(bench: Bench) -> None:
  """Empty trees, scalars, nested tuples, leaves without elements and MaskedNodes all work."""
  some = problem.parameters(bench.row.params)
  trees = [
    {},
    some["gain"],
    (some["dense"]["bias"], (some["gain"], ((), [some["dense"]["kernel"]]))),
    {"empty": jnp.zeros((0, 8)), "bias": some["dense"]["bias"]},
    {"masked": optax.MaskedNode(), "bias": some["dense"]["bias"]},
  ]
  for params in trees:
    batch = problem.data(params)
    done = run(jitted(bench.optimizer, batch), started(bench.optimizer, params), 2)
    assert types_of(done[-1][1].updates) == types_of(params)
    assert_finite(updates_of(done))


@checks()
def bfloat16(bench: Bench) -> None:
  """Parameters in bfloat16 get updates in bfloat16, from statistics in float32."""
  params = problem.parameters(bench.row.params, dtype=jnp.bfloat16)
  start = started(bench.optimizer, params)
  done = run(jitted(bench.optimizer, problem.data(params)), start, 3)
  assert types_of(done[-1][1].updates) == types_of(params)
  assert types_of(done[-1][0].state) == types_of(start.state)
  assert_finite(updates_of(done))
  narrow = [leaf for leaf in jax.tree.leaves(start.state) if leaf.dtype == jnp.bfloat16]
  assert not narrow, "the state of bfloat16 parameters is kept in float32"


@checks()
def float64(bench: Bench) -> None:
  """Under x64, parameters in float64 get the updates of float32 in float64."""
  with jax.enable_x64(True):
    params = problem.parameters(bench.row.params, dtype=jnp.float64)
    start = started(bench.optimizer, params)
    done = run(jitted(bench.optimizer, problem.data(params)), start, 3)
    assert types_of(done[-1][1].updates) == types_of(params)
    assert types_of(done[-1][0].state) == types_of(start.state)
  assert_close(updates_of(bench.reference[:3]), updates_of(done), 30 * bench.row.tolerance)


def _is_number(value: Any) -> bool:
  """Whether optax.inject_hyperparams takes it for one, or for a schedule of them."""
  return callable(value) or (isinstance(value, (int, float)) and not isinstance(value, bool))


@checks()
def inject_hyperparams(bench: Bench) -> None:
  """Numeric hyper-parameters may live in the state; the rest are static."""
  injected = []

  def inject(factory, *args, **kwargs):
    static = static_arguments(factory)
    given = inspect.signature(factory).bind(*args, **kwargs)
    given.apply_defaults()
    numbers = {name for name, value in given.arguments.items() if _is_number(value)}
    injected.append(bool(numbers - set(static)))
    return optax.inject_hyperparams(factory, static_args=static)(*args, **kwargs)

  with wrapped(bench.entry, inject):
    optimizer = spec.optimizer(bench.row.spec, **KNOWN)
  done = run(jitted(optimizer, bench.data), started(optimizer, bench.params), 3)
  assert_close(updates_of(done), updates_of(bench.reference[:3]), 10 * bench.row.tolerance)
  hyperparams = optax.tree.get_all_with_path(done[-1][0].state, "hyperparams")
  assert any(injected) == any(bool(values) for _, values in hyperparams)


@checks()
def masked(bench: Bench) -> None:
  """`optax.masked` on a part of the tree is the method on that part by hand."""
  optimizer = optax.masked(bench.optimizer, {"dense": True, "gain": False})
  rest = {"gain": bench.params["gain"]}
  step = jitted(optimizer, bench.data)
  done, carry = [], started(optimizer, bench.params)
  for _ in range(3):
    carry, result = step(carry)
    done.append(result.updates["dense"])
    carry = carry._replace(params={**carry.params, **rest})

  by_hand = jax.jit(lambda carry: _step_on_part(bench.optimizer, carry, rest, bench.data))
  part = {"dense": bench.params["dense"]}
  expected = run(by_hand, started(bench.optimizer, part), 3)
  assert_close(done, [u["dense"] for u in updates_of(expected)], 10 * bench.row.tolerance)


@checks()
def chain(bench: Bench) -> None:
  """In a chain, what follows sees the updates."""
  optimizer = optax.chain(bench.optimizer, optax.scale(0.5))
  _, result = jitted(optimizer, bench.data)(started(optimizer, bench.params))
  half = jax.tree.map(lambda u: 0.5 * u, bench.reference[0][1].updates)
  assert_close(result.updates, half, bench.row.tolerance)


@checks()
def multi_steps(bench: Bench) -> None:
  """Under `optax.MultiSteps`, two steps on one batch are one step."""
  optimizer = optax.MultiSteps(bench.optimizer, every_k_schedule=2)
  done = run(jitted(optimizer, bench.data), started(optimizer, bench.params), 4)
  waiting = jax.tree.map(jnp.zeros_like, bench.params)
  assert_close(updates_of(done[0::2]), [waiting, waiting])
  expected = updates_of(bench.reference[:2])
  assert_close(updates_of(done[1::2]), expected, 10 * bench.row.tolerance)


@checks()
def limits(bench: Bench) -> None:
  """Specs that describe the same method give the same steps."""
  for pair in bench.row.limits:
    one, other = (spec.optimizer(text, **KNOWN) for text in pair)
    done = run(jitted(one, bench.data), started(one, bench.params), 5)
    expected = run(jitted(other, bench.data), started(other, bench.params), 5)
    assert_close(updates_of(done), updates_of(expected), 10 * bench.row.tolerance)


@checks()
def cost(bench: Bench) -> None:
  """A step evaluates the model as often as the row says, beyond the incoming gradient."""

  def step(carry, batch):
    value, grad = jax.value_and_grad(problem.oracle(carry.params, batch))(carry.params)
    value_fn = problem.oracle(carry.params, batch, model=counted)
    return bench.optimizer.update(
      grad, carry.state, carry.params, value=value, grad=grad, value_fn=value_fn
    )

  with count_evaluations(problem.outputs_of) as (counted, count):
    jax.block_until_ready(jax.jit(step)(bench.start, bench.data))
    jax.effects_barrier()
  assert len(count) == bench.row.evaluations


@checks(devices=True)
def sharded(bench: Bench) -> None:
  """Parameters and batch sharded over eight devices give the steps of one device."""
  mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))

  def spread(leaf):
    split = leaf.ndim > 0 and leaf.shape[0] % 8 == 0
    axes = jax.sharding.PartitionSpec("data" if split else None) if leaf.ndim else ()
    return jax.device_put(leaf, jax.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes)))

  params, batch = jax.tree.map(spread, (bench.params, bench.data))
  step = jax.jit(functools.partial(step_of, bench.optimizer))
  carry = Carry(jax.jit(bench.optimizer.init)(params), params)
  done = run(lambda carry: step(carry, batch), carry, 3)
  assert_close(updates_of(done), updates_of(bench.reference[:3]), 10 * bench.row.tolerance)


@checks(devices=True)
def pmapped(bench: Bench) -> None:
  """Under `pmap`, with one example a worker and averaged gradients, steps are those of one device.

  What an Oracle shows besides the loss is then the worker's own.
  """

  def step(carry, batch):
    local = problem.oracle(carry.params, batch)

    def loss(params):
      return jax.lax.pmean(local(parallel.mean_grads(params, "workers")), "workers")

    value_fn = oracle.Oracle(
      loss, carry.params, outputs=local.outputs, loss_of=local.loss_of, losses=local.losses
    )
    return step_with(bench.optimizer, carry, value_fn)

  maps, targets = jax.tree.map(lambda leaf: leaf[:, None], (bench.data.maps, bench.data.targets))
  batch = problem.Data(maps, targets, jnp.full(len(targets), bench.data.scale))
  by_worker = jax.jit(jax.pmap(step, axis_name="workers"))
  done = run(lambda carry: by_worker(carry, batch), stacked([bench.start] * len(targets)), 3)
  expected = [stacked([updates] * len(targets)) for updates in updates_of(bench.reference[:3])]
  assert_close(updates_of(done), expected, 10 * bench.row.tolerance)


@contextlib.contextmanager
def count_evaluations(model: Any) -> Iterator[tuple[Any, list[None]]]:
  """`model` and a list that grows by one whenever it is run (not when it is traced)."""
  count: list[None] = []

  def counted(*args):
    jax.debug.callback(lambda: count.append(None))
    return model(*args)

  yield counted, count


def _step_on_part(optimizer: Any, carry: Carry, rest: Any, batch: problem.Data) -> Any:
  """A step on a part of the tree, the rest being constants of the loss."""
  whole = problem.oracle({**carry.params, **rest}, batch)
  value_fn = oracle.Oracle(
    lambda part: whole({**part, **rest}),
    carry.params,
    outputs=lambda part, *inputs: whole.outputs({**part, **rest}, *inputs),
    loss_of=whole.loss_of,
    losses=lambda part: whole.losses({**part, **rest}),
    of_slice=lambda part, *which: whole.of_slice({**part, **rest}, *which),
    of_rows=lambda part, rows, share: whole.of_rows({**part, **rest}, rows, share=share),
    batch=whole.batch,
  )
  return step_with(optimizer, carry, value_fn)
