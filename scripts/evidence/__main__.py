"""Reruns experiments on what papers claim, and writes the table of all of them.

python -m scripts.evidence sam maxsup group_dro
"""

import dataclasses
import importlib
import pathlib
import sys
from typing import Annotated

import tyro

from scripts.evidence import _report, _results
from scripts.evidence._experiment import INVALID, Experiment, OutOfTime, run


@dataclasses.dataclass(frozen=True)
class Config:
  """Rerun experiments on what papers claim, and write the table of all of them.

  Each writes OUT/NAME.json and OUT/NAME.png; OUT/README.md has the table. Without a name
  only the table is written, from the results that are there.
  """

  names: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
  """Files of scripts/evidence."""
  family: str | None = None
  """All experiments of a family."""
  out: pathlib.Path = _results.FOLDER
  """Folder of the results."""
  minutes: float | None = None
  """After which each experiment is stopped; by default what it says of itself."""


def experiment(name: str) -> Experiment:
  """The experiment of that name.

  Raises:
    ValueError: there is none.
  """
  if name not in _results.names():
    raise ValueError(f"no experiment {name!r}: there are {', '.join(_results.names())}")
  return importlib.import_module(f"scripts.evidence.{name}").EXPERIMENT


def chosen(config: Config) -> dict[str, Experiment]:
  """The experiments that a configuration names."""
  found = {name: experiment(name) for name in config.names}
  if config.family is not None:
    every = {name: experiment(name) for name in _results.names()}
    family = {name: e for name, e in every.items() if e.family == config.family}
    if not family:
      families = sorted({e.family for e in every.values()})
      raise ValueError(f"no family {config.family!r}: there are {', '.join(families)}")
    found |= family
  return found


def main() -> None:
  """The command line."""
  config = tyro.cli(Config, prog="python -m scripts.evidence")
  try:
    experiments = chosen(config)
  except ValueError as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)
  bad = [name for name, chosen in experiments.items() if not _succeeds(config, name, chosen)]
  config.out.mkdir(parents=True, exist_ok=True)
  _report.write_table(config.out)
  print(f"written to {config.out}")
  sys.exit(1 if bad else 0)


def _succeeds(config: Config, name: str, experiment: Experiment) -> bool:
  """Runs one and writes what it found; says so where that is worth nothing."""
  print(f"{name}: {len(experiment.arms)} arms, {len(experiment.seeds)} seeds")
  try:
    result = run(experiment, lambda line: print(f"  {line}", flush=True), config.minutes)
  except OutOfTime as error:
    print(f"error: {name}: {error}", file=sys.stderr)
    return False
  _report.write(config.out, name, experiment, result)
  print(f"{_report.printed(name, result)}\n{name}: {result.verdict}\n")
  if result.verdict == INVALID:
    print(f"error: {name}: the null came out as shown", file=sys.stderr)
  return result.verdict != INVALID


if __name__ == "__main__":
  main()
