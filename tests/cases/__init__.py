"""Rows: one example of each method, on which every shared check runs.

To add a row, write one line in the file named after the method's folder:

  OptimizerRow("sam(rho=0.05) | sgd(0.1)")            in cases/optimizers.py
  ObjectiveRow("cross_entropy() | z_error(tau=2)")    in cases/reweighting.py
  SolverRow("vr_halpern(least_squares(), 1.0)")       in cases/solvers.py

The text is a spec (see `jaxrl.spec`). A row tests the function in it that lives in the folder
of the row's file; `method` names it where there are several. Everything else has a default,
and says in what the method differs from others.
"""

import ast
import dataclasses
import functools
import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from jaxrl.catalogue import (
  BATCH_TRANSFORM,
  GRADIENT_TRANSFORMATION,
  LOSS,
  LOSS_TRANSFORM,
  OBJECTIVE,
  SOLVER,
  Entry,
  catalogue,
)

FOLDER = Path(__file__).parent
KINDS = (GRADIENT_TRANSFORMATION, LOSS, OBJECTIVE, LOSS_TRANSFORM, BATCH_TRANSFORM, SOLVER)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class _Row:
  """What rows of optimizers and objectives have in common.

  Attributes:
    spec: a complete example, as a user would write it.
    method: the function under test; the only one of the folder in `spec` unless given.
    limits: pairs of specs that must behave alike, such as `("sam(rho=0)", "identity()")`.
    bad: specs that must raise ValueError or TypeError, each with a part of the message.
    why: the reason for every field that takes a check away or makes it looser.
    xfail: checks that must fail (strictly), each with the reason.
    tolerance: how many times looser than the default floating-point comparisons are.
  """

  spec: str = dataclasses.field(kw_only=False)
  method: str = ""
  limits: tuple[tuple[str, str], ...] = ()
  bad: Mapping[str, str] = dataclasses.field(default_factory=dict)
  why: str = ""
  xfail: Mapping[str, str] = dataclasses.field(default_factory=dict)
  tolerance: float = 1.0

  @property
  def must_fail(self) -> Mapping[str, str]:
    """Checks that must fail, each with the reason."""
    return self.xfail


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class OptimizerRow(_Row):
  """A row of `optimizers/`.

  Attributes:
    evaluations: evaluations of the model per step beyond the incoming gradient.
    params: domain of the parameters: any numbers, or positive with last axes that sum to 1.
    workers: `matter` if updates under `pmap` are not those of one device, as where a method
      uses the outputs, which are a worker's own.
    falls: whether the loss falls on the test problem within 50 steps.
  """

  evaluations: int = 0
  params: Literal["any", "simplex"] = "any"
  workers: Literal["any", "matter"] = "any"
  falls: bool = True

  @property
  def must_fail(self) -> Mapping[str, str]:
    """Checks that must fail, each with the reason."""
    return {**self.xfail, "pmapped": self.why} if self.workers == "matter" else self.xfail


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ObjectiveRow(_Row):
  """A row of a folder of `objectives/`.

  Attributes:
    batch: `whole` if micro-batches give another result than the whole batch.
    stopped: glossary names of arrays through which no gradient may flow.
  """

  batch: Literal["micro", "whole"] = "micro"
  stopped: tuple[str, ...] = ()

  @property
  def must_fail(self) -> Mapping[str, str]:
    """Checks that must fail, each with the reason."""
    return {**self.xfail, "micro_batches": self.why} if self.batch == "whole" else self.xfail


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class SolverRow(_Row):
  """A row of `optimizers/solvers/`; its spec may call the problems of `tests/solver_problem.py`.

  Attributes:
    metric: the one that says how far the solver is.
    evaluations: calls of the problem's function in the first five steps.
    settles: whether the metric falls to a quarter of its first value within 300 steps.
  """

  metric: str
  evaluations: int
  settles: bool = True


Row = OptimizerRow | ObjectiveRow | SolverRow


@functools.cache
def rows(file: str) -> tuple[Row, ...]:
  """The rows of `cases/<file>.py`, their methods filled in."""
  module = importlib.import_module(f"tests.cases.{file}")
  return tuple(_with_method(row, file) for row in module.ROWS)


def row_files() -> list[str]:
  """Names of the files with rows."""
  return sorted(path.stem for path in FOLDER.glob("[!_]*.py"))


def methods_of(file: str) -> list[Entry]:
  """The methods that rows of `cases/<file>.py` are about."""
  folders = {"optimizers": "optimizers", "solvers": "optimizers/solvers"}
  folder = folders.get(file, f"objectives/{file}")
  here = [entry for entry in catalogue() if str(Path(entry.file).parent) == folder]
  return [entry for entry in here if entry.kind in KINDS]


def named_at_start(test: str) -> Entry | None:
  """The method by whose name the name of a test begins, `sam` of `sam_moves`; the longest one."""
  fitting = [e for e in catalogue() if test == e.name or test.startswith(f"{e.name}_")]
  return max(fitting, key=lambda entry: len(entry.name), default=None)


@functools.cache
def names_in(spec: str) -> frozenset[str]:
  """The names of the functions that a spec calls."""
  calls = [node.func for node in ast.walk(ast.parse(spec)) if isinstance(node, ast.Call)]
  return frozenset(call.id for call in calls if isinstance(call, ast.Name))


def _with_method(row: Row, file: str) -> Row:
  if row.method:
    return row
  here = {entry.name for entry in methods_of(file)} & names_in(row.spec)
  if not here:
    raise ValueError(
      f"cases/{file}.py: {row.spec!r} calls no method of this folder: check the function's name "
      "and its return annotation (CONTRIBUTING, Where a method goes)"
    )
  if len(here) != 1:
    raise ValueError(f"cases/{file}.py: {row.spec!r} needs method=, one of {sorted(here)}")
  return dataclasses.replace(row, method=here.pop())
