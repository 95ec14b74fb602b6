"""python -m scripts.bench --suite train."""

import dataclasses
import importlib
import inspect
import pathlib
import pkgutil
import sys
from collections.abc import Sequence
from typing import NoReturn

import tyro

from jaxrl import check
from scripts import bench

from ._measure import Ratio, measure
from ._peers import Peers
from ._report import Report, machine, sentence


@dataclasses.dataclass(frozen=True)
class Config:
  """Time the library against its peers, in alternation, and print their ratios.

  The tables are also written to OUT/SUITE.md and, in seconds and bytes, to OUT/SUITE.json.
  """

  suite: str = "train"
  """A file of scripts/bench: compressed, memory, second_order, sharpness or train."""
  sizes: tuple[float, ...] = ()
  """Parameters, such as 1e6 1e8, for the suite compressed; it has some by default."""
  rounds: int = 20
  """Rounds of each case, beyond the first."""
  peers: pathlib.Path | None = None
  """Python of an environment from requirements-oracles.txt, for the peers that need one."""
  out: pathlib.Path = pathlib.Path("docs/bench")
  """Folder of the results."""
  fail_above: float | None = None
  """Exit with 1 if a ratio's lower quartile is above this, or above its limit in the table."""


def suites() -> list[str]:
  """The names of all suites."""
  found = pkgutil.iter_modules(bench.__path__)
  return sorted(m.name for m in found if not m.ispkg and not m.name.startswith("_"))


def run(config: Config) -> Report:
  """Measures a suite.

  Raises:
    ValueError: there is no such suite, it has no `sizes`, one of them or `rounds` is no
      positive whole number, or `peers` is no file.
    OSError: the Python of the peers can't be started.
    EOFError: a peer ended before its time.
  """
  check.one_of("suite", config.suite, suites())
  check.whole("rounds", config.rounds, 1)
  suite = importlib.import_module(f"scripts.bench.{config.suite}").suite
  options = {}
  if config.sizes:
    if "sizes" not in inspect.signature(suite).parameters:
      raise ValueError(f"suite {config.suite} has no sizes, got {config.sizes}")
    options["sizes"] = [_whole(size) for size in config.sizes]
  report = Report(config.suite, config.rounds, machine(), [], [], [])
  with Peers(config.peers) as peers:
    for case in suite(peers, **options):
      timings, ratios = measure(case, config.rounds)
      report.timings.extend(timings)
      report.ratios.extend(ratios)
      report.tables.extend(case.tables)
  return report


def _whole(size: float) -> int:
  if size < 1 or size != int(size):
    raise ValueError(f"sizes must be whole numbers of at least 1, got {size}")
  return int(size)


def main(arguments: Sequence[str] | None = None) -> None:
  """The command line."""
  config = tyro.cli(Config, prog="python -m scripts.bench", args=arguments)
  try:
    report = run(config)
    written = report.write(config.out)
  except (ValueError, OSError) as error:
    _leave(2, error)
  except EOFError as error:
    _leave(1, f"a peer ended: {error}")
  print(f"{report.markdown()}\n\nwritten to {' and '.join(map(str, written))}")
  slow = _slow(report.ratios, config.fail_above)
  if slow:
    _leave(1, "too slow: " + "; ".join(map(sentence, slow)))


def _slow(ratios: Sequence[Ratio], fail_above: float | None) -> list[Ratio]:
  if fail_above is None:
    return []
  return [ratio for ratio in ratios if ratio.exceeds(fail_above)]


def _leave(code: int, error: Exception | str) -> NoReturn:
  print("error: " + " ".join(str(error).split()), file=sys.stderr)
  sys.exit(code)


if __name__ == "__main__":
  main()
