"""The properties of every solver. Each check gets a Bench: a row, built and compiled once."""

import functools
import importlib
import tempfile
from typing import Any

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint
import pytest

from optimizers.solvers._solver import Solver
from tests import solver_problem
from tests.cases import SolverRow
from tests.properties import (
  Checks,
  assert_close,
  assert_finite,
  assert_identical,
  differs,
  entry_of,
  stacked,
  types_of,
)

checks = Checks()


class Bench:
  """A row's solver, with one compiled, donating step."""

  def __init__(self, row: SolverRow):
    self.row = row
    self.solver = self.made(row.spec)
    self.params = solver_problem.parameters()
    self.traces = 0
    self._step = jax.jit(self._traced, donate_argnums=0)

  def made(self, text: str, evaluated: Any = None) -> Solver:
    """The solver that `text` describes, on the problems of `tests/solver_problem.py`."""
    entry = entry_of(self.row)
    factory = getattr(importlib.import_module(entry.module), entry.name)
    return eval(text, {entry.name: factory, **solver_problem.problems(evaluated)})

  def _traced(self, state: Any) -> Any:
    self.traces += 1
    return self.solver.step(state)

  @functools.cached_property
  def start(self) -> Any:
    """The state before the first step."""
    return jax.jit(self.solver.init)(self.params)

  def run(self, steps: int, state: Any = None) -> list[Any]:
    """The states after each of `steps` steps."""
    state, states = self.start if state is None else state, []
    for _ in range(steps):
      state = self._step(jax.tree.map(jnp.copy, state))
      states.append(state)
    return states

  @functools.cached_property
  def reference(self) -> list[Any]:
    """The first five states."""
    return self.run(5)


def run(solver: Solver, state: Any, steps: int) -> list[Any]:
  """The states after each of `steps` steps, not compiled."""
  states = []
  for _ in range(steps):
    state = solver.step(state)
    states.append(state)
  return states


@checks(core=True)
def contract(bench: Bench) -> None:
  """A Solver, whose state is a NamedTuple with the parameters, and float32 metrics."""
  assert isinstance(bench.solver, Solver)
  state = bench.reference[0]
  assert hasattr(state, "_fields")
  assert types_of(state.params) == types_of(bench.params)
  for metric in getattr(state, "metrics", {}).values():
    assert (metric.shape, metric.dtype) == ((), jnp.float32)


@checks(core=True)
def one_trace(bench: Bench) -> None:
  """The state keeps its structure, dtypes and weak types, so that a step is traced once."""
  for state in bench.reference:
    assert types_of(state) == types_of(bench.start)
  assert bench.traces == 1


@checks(core=True)
def init_by_shape(bench: Bench) -> None:
  """`init` can be evaluated on shapes alone."""
  assert types_of(jax.eval_shape(bench.solver.init, bench.params)) == types_of(bench.start)


@checks()
def jit_is_eager(bench: Bench) -> None:
  """Compiled and uncompiled steps agree."""
  states = run(bench.solver, bench.solver.init(bench.params), 2)
  assert_close(bench.reference[:2], states, bench.row.tolerance)


@checks(core=True)
def deterministic(bench: Bench) -> None:
  """The same start gives the same bits; another seed gives other iterates."""
  assert_identical(bench.run(5), bench.reference)
  if hasattr(bench.start, "seed"):
    other = bench.run(5, bench.start._replace(seed=jnp.asarray(12345, jnp.int32)))
    assert differs(other[-1].params, bench.reference[-1].params)


@checks(core=True)
def scan(bench: Bench) -> None:
  """Fifty steps under `lax.scan` are those of a loop, and finite."""

  def body(state, _):
    state = bench.solver.step(state)
    return state, state

  _, states = jax.jit(lambda state: jax.lax.scan(body, state, length=50))(bench.start)
  assert_finite(states)
  first = jax.tree.map(lambda leaf: leaf[:5], states)
  assert_close(first, stacked(bench.reference), 10 * bench.row.tolerance)


@checks()
def vmap_is_loop(bench: Bench) -> None:
  """Members of a vmapped run, each with its own start and seed, are those of a loop."""
  members = []
  for seed in range(3):
    member = bench.solver.init(solver_problem.parameters(seed))
    if hasattr(member, "seed"):
      member = member._replace(seed=jnp.asarray(seed, jnp.int32))
    members.append(member)
  loop = [bench.run(3, member)[-1] for member in members]
  vmapped = stacked(members)
  step = jax.jit(jax.vmap(bench.solver.step))
  for _ in range(3):
    vmapped = step(vmapped)
  assert_close(vmapped, stacked(loop), 10 * bench.row.tolerance)


@checks()
def float64(bench: Bench) -> None:
  """Under x64, parameters in float64 get the iterates of float32 in float64."""
  with jax.enable_x64(True):
    solver = bench.made(bench.row.spec)
    start = solver.init(solver_problem.parameters(dtype=jnp.float64))
    step = jax.jit(solver.step)
    state = step(step(start))
    assert types_of(state) == types_of(start)
    assert all(leaf.dtype == jnp.float64 for leaf in jax.tree.leaves(state.params))
  assert_close(bench.reference[1].params, state.params, 30 * bench.row.tolerance)


@checks()
def bfloat16(bench: Bench) -> None:
  """From parameters in bfloat16 on, iterates are in float32."""
  start = jax.jit(bench.solver.init)(solver_problem.parameters(dtype=jnp.bfloat16))
  state = jax.jit(bench.solver.step)(start)
  assert types_of(state) == types_of(bench.start)


@checks(core=True)
def round_trips(bench: Bench) -> None:
  """A state that went through Flax's serialization or Orbax gives the next step bit for bit."""
  state = bench.reference[1]
  stored = flax.serialization.to_bytes(state)
  flaxed = jax.tree.map(jnp.asarray, flax.serialization.from_bytes(bench.start, stored))
  with tempfile.TemporaryDirectory() as folder, orbax.checkpoint.StandardCheckpointer() as saver:
    saver.save(f"{folder}/state", state._asdict())
    saver.wait_until_finished()
    shapes = jax.tree.map(orbax.checkpoint.utils.to_shape_dtype_struct, state._asdict())
    restored = type(state)(**saver.restore(f"{folder}/state", shapes))
  for back in (flaxed, restored):
    assert_identical(bench.run(1, back), bench.run(1, state))


@checks(core=True)
def settles(bench: Bench) -> None:
  """After 300 steps the row's metric is a quarter of the first, unless the row says it isn't."""
  states = bench.run(300)
  first, last = (float(states[i].metrics[bench.row.metric]) for i in (0, -1))
  assert np.isfinite(last)
  assert (last < first / 4) == bench.row.settles, (first, last)


@checks(core=True)
def bad_arguments(bench: Bench) -> None:
  """Each bad argument raises an error that says what is allowed."""
  for text, message in bench.row.bad.items():
    with pytest.raises((ValueError, TypeError)) as error:
      bench.made(text)
    assert message in str(error.value)


@checks(core=True)
def another_structure(bench: Bench) -> None:
  """A problem that doesn't give the structure of the parameters is refused."""
  entry = entry_of(bench.row)
  factory = getattr(importlib.import_module(entry.module), entry.name)
  solver = eval(bench.row.spec, {entry.name: factory, **solver_problem.misshapen()})
  with pytest.raises(ValueError, match="must give the structure of the parameters"):
    solver.step(solver.init(bench.params))


@checks(core=True)
def cost(bench: Bench) -> None:
  """Five steps evaluate the problem as often as the row says."""
  count: list[None] = []
  solver = bench.made(bench.row.spec, lambda: count.append(None))
  state = solver.init(bench.params)
  jax.effects_barrier()
  count.clear()
  step = jax.jit(solver.step)
  for _ in range(5):
    state = step(state)
  jax.block_until_ready(state)
  jax.effects_barrier()
  assert len(count) == bench.row.evaluations
