"""Programs in alternation in one process: seconds a step, ratios, and what XLA says of each."""

import collections
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np


class Program(NamedTuple):
  """What is measured; `None` stands for what does not apply, or is not known.

  Attributes:
    run: runs one round and returns its seconds a step; `None` if the program is missing.
    note: what it runs on, or why it is missing.
    compile_seconds: from Python function to machine code.
    temporaries: bytes that the compiled step needs besides arguments and outputs.
    arguments: bytes of state and batch.
    outputs: bytes of the next state and metrics; a donated state is counted there too.
    peak: bytes of all three, a donated state counted once.
    optimizer_state: bytes.
    flops: of a step; XLA counts the body of a loop once.
  """

  run: Callable[[], float] | None
  note: str = ""
  compile_seconds: float | None = None
  temporaries: int | None = None
  arguments: int | None = None
  outputs: int | None = None
  peak: int | None = None
  optimizer_state: int | None = None
  flops: float | None = None


class Comparison(NamedTuple):
  """Two programs of a case, and the ratio of their times that must not be exceeded."""

  program: str
  against: str
  limit: float | None = None


class Table(NamedTuple):
  """What a suite knows without running anything; numbers in the rows are shown as they are."""

  title: str
  header: Sequence[str]
  rows: Sequence[Sequence[str | int | float | None]]


class Case(NamedTuple):
  """Programs that run in alternation, which of them are compared, and what is told besides."""

  name: str
  programs: Mapping[str, Program]
  comparisons: Sequence[Comparison]
  tables: Sequence[Table] = ()


class Quartiles(NamedTuple):
  """Of the rounds."""

  low: float
  median: float
  high: float


class Timing(NamedTuple):
  """One program's measurements; `seconds` a step is `None` if it is missing."""

  case: str
  name: str
  program: Program
  seconds: Quartiles | None


class Ratio(NamedTuple):
  """Two programs' times within a round, and their flops, as ratios; `None` where not known."""

  case: str
  comparison: Comparison
  ratio: Quartiles | None
  flops: float | None

  def exceeds(self, limit: float | None) -> bool:
    """Whether even the lower quartile is above the comparison's limit, or else `limit`."""
    if self.comparison.limit is not None:
      limit = self.comparison.limit
    return self.ratio is not None and limit is not None and self.ratio.low > limit


def of_step(
  step: Callable[[Any, Any], tuple[Any, Any]],
  state: Any,
  batch: Any,
  *,
  optimizer_state: Callable[[Any], Any],
  steps: int,
) -> Program:
  """Compiles `step(state, batch) -> (state, metrics)`; a round is `steps` of them in a row.

  It is traced once, and its state must come out as it went in, which is what keeps it from
  being traced again. The state is donated.

  Raises:
    TypeError: the state changes its structure, a shape or a type.
  """
  start = time.perf_counter()
  traced = jax.jit(step, donate_argnums=0).trace(state, batch)
  before, after = jax.tree.map(_type, state), jax.tree.map(_type, traced.out_info[0])
  if before != after:
    raise TypeError(f"a step must leave its state's types alone, got {after} from {before}")
  compiled = traced.lower().compile()
  compile_seconds = time.perf_counter() - start
  memory = compiled.memory_analysis()
  temporaries, arguments, outputs, aliased = (
    getattr(memory, f"{kind}_size_in_bytes", None)
    for kind in ("temp", "argument", "output", "alias")
  )
  sizes = [temporaries, arguments, outputs, aliased]
  known = [size for size in sizes if size is not None]
  peak = sum(known) - 2 * known[-1] if len(known) == len(sizes) else None
  return Program(
    _rounds_of(compiled, state, jax.device_put(batch), steps),
    "",
    compile_seconds,
    temporaries,
    arguments,
    outputs,
    peak,
    sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(optimizer_state(state))),
    (compiled.cost_analysis() or {}).get("flops"),
  )


def measure(case: Case, rounds: int) -> tuple[list[Timing], list[Ratio]]:
  """Runs the programs of a case that aren't missing in turn, `rounds` times.

  Another one begins in every round. A ratio is taken within each round, so that a machine
  whose speed drifts slows both. The first round is not counted.
  """
  runs = {name: program.run for name, program in case.programs.items() if program.run}
  seconds: dict[str, list[float]] = {name: [] for name in runs}
  names = collections.deque(runs)
  for _ in range(rounds + 1):
    for name in names:
      seconds[name].append(runs[name]())
    names.rotate(-1)
  counted = {name: np.array(values[1:]) for name, values in seconds.items()}
  timings = [
    Timing(case.name, name, program, _quartiles(counted.get(name)))
    for name, program in case.programs.items()
  ]
  return timings, [_ratio(case, comparison, counted) for comparison in case.comparisons]


def _ratio(case: Case, comparison: Comparison, seconds: Mapping[str, np.ndarray]) -> Ratio:
  names = comparison.program, comparison.against
  ours, peer = (seconds.get(name) for name in names)
  our_flops, peer_flops = (case.programs[name].flops for name in names)
  return Ratio(
    case.name,
    comparison,
    None if ours is None or peer is None else _quartiles(ours / peer),
    our_flops / peer_flops if our_flops and peer_flops else None,
  )


def _quartiles(values: np.ndarray | None) -> Quartiles | None:
  return None if values is None else Quartiles(*np.quantile(values, [0.25, 0.5, 0.75]).tolist())


def _rounds_of(
  compiled: Callable[..., Any], state: Any, batch: Any, steps: int
) -> Callable[[], float]:
  """Rounds that go on from wherever the last one ended."""
  latest = [state]

  def run():
    start = time.perf_counter()
    for _ in range(steps):
      latest[0], _metrics = compiled(latest[0], batch)
    jax.block_until_ready(latest[0])
    return (time.perf_counter() - start) / steps

  return run


def _type(x: Any) -> tuple[tuple[int, ...], Any, bool]:
  return x.shape, x.dtype, getattr(x, "weak_type", False)
