"""python -m scripts.bench --suite train."""

import dataclasses
import importlib
import pathlib
import platform
import sys

import jax
import tyro

from scripts.bench.measure import HEADER


@dataclasses.dataclass(frozen=True)
class Config:
  """Time the library against its peers, in alternation in one process; prints ratios."""

  suite: str = "train"
  """A file of scripts/bench."""
  rounds: int = 20
  """Rounds of each comparison, beyond the first."""


def main() -> None:
  """Runs one suite and prints its table."""
  config = tyro.cli(Config)
  suites = sorted(path.stem for path in _suites())
  if config.suite not in suites:
    print(f"no suite {config.suite!r}: there are {', '.join(suites)}", file=sys.stderr)
    sys.exit(2)
  rows = importlib.import_module(f"scripts.bench.{config.suite}").suite(config.rounds)
  device = jax.devices()[0]
  print(f"jax {jax.__version__}, {device.device_kind}, {platform.machine()}\n\n{HEADER}")
  for row in rows:
    print(row.row())


def _suites() -> list[pathlib.Path]:
  files = pathlib.Path(__file__).parent.glob("*.py")
  return [path for path in files if path.stem != "measure" and not path.stem.startswith("_")]


if __name__ == "__main__":
  main()
