"""A suite's results as Markdown and JSON, below a line about the machine."""

import json
import os
import pathlib
import platform
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax

from ._measure import Quartiles, Ratio, Table, Timing

_PROGRAMS = (
  "case",
  "program",
  "ms a step",
  "quartiles",
  "compile, s",
  "temporaries, MB",
  "arguments, MB",
  "outputs, MB",
  "peak, MB",
  "optimizer state, MB",
  "Mflop",
)
_RATIOS = ("case", "program", "against", "ratio", "quartiles", "limit", "flops")


class Report(NamedTuple):
  """What one run of a suite measured, on the machine that it ran on."""

  suite: str
  rounds: int
  machine: dict[str, Any]
  timings: list[Timing]
  ratios: list[Ratio]
  tables: list[Table]

  def markdown(self) -> str:
    """The machine, the ratios, the programs and what else the suite tells."""
    ratios = [self._ratio_cells(ratio) for ratio in self.ratios]
    return "\n\n".join(
      (
        f"{machine_line(self.machine)}; {self.rounds} rounds",
        *([_table(_RATIOS, ratios)] if ratios else []),
        _table(_PROGRAMS, [_program_cells(timing) for timing in self.timings]),
        *(_titled(table) for table in self.tables),
      )
    )

  def as_json(self) -> dict[str, Any]:
    """The same, in seconds and bytes."""
    return {
      "suite": self.suite,
      "rounds": self.rounds,
      "machine": self.machine,
      "ratios": [
        {
          "case": ratio.case,
          **ratio.comparison._asdict(),
          "ratio": _as_dict(ratio.ratio),
          "flops": ratio.flops,
        }
        for ratio in self.ratios
      ],
      "programs": [
        {
          "case": timing.case,
          "program": timing.name,
          "seconds": _as_dict(timing.seconds),
          **{k: v for k, v in timing.program._asdict().items() if k != "run"},
        }
        for timing in self.timings
      ],
      "tables": [table._asdict() for table in self.tables],
    }

  def write(self, folder: pathlib.Path) -> list[pathlib.Path]:
    """Writes <suite>.md and <suite>.json, and returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    markdown, values = (folder / f"{self.suite}.{kind}" for kind in ("md", "json"))
    markdown.write_text(
      f"# {self.suite}\n\n`python -m scripts.bench --suite {self.suite}` on\n{self.markdown()}\n"
    )
    values.write_text(json.dumps(self.as_json(), indent=2) + "\n")
    return [markdown, values]

  def _ratio_cells(self, ratio: Ratio) -> list[str]:
    comparison = ratio.comparison
    missing = {
      timing.name: timing.program.note
      for timing in self.timings
      if timing.case == ratio.case and timing.seconds is None
    }
    limit = _cell(comparison.limit, "g") + (" (exceeded)" if ratio.exceeds(None) else "")
    return [
      ratio.case,
      *(_noted(name, missing.get(name)) for name in (comparison.program, comparison.against)),
      _cell(ratio.ratio and ratio.ratio.median, ".3f"),
      _spread(ratio.ratio, ".3f"),
      limit,
      _cell(ratio.flops, ".3f"),
    ]


def machine() -> dict[str, Any]:
  """What times depend on, and how busy it is; nothing that names this machine."""
  return {
    "jax": jax.__version__,
    "platform": jax.default_backend(),
    "device_kind": jax.devices()[0].device_kind,
    "devices": jax.device_count(),
    "cpu_cores": os.cpu_count(),
    "architecture": platform.machine(),
    "python": platform.python_version(),
    "load": round(os.getloadavg()[0], 1),
  }


def machine_line(about: dict[str, Any]) -> str:
  """The machine in one line."""
  return (
    f"jax {about['jax']}, {about['platform']}: {about['devices']} x {about['device_kind']}, "
    f"{about['cpu_cores']} CPU cores, {about['architecture']}, "
    f"Python {about['python']}, load {about['load']} before"
  )


def sentence(ratio: Ratio) -> str:
  """A ratio in one line."""
  assert ratio.ratio is not None
  names = f"{ratio.case}: {ratio.comparison.program} / {ratio.comparison.against}"
  return f"{names} = {ratio.ratio.median:.3f}, quartiles {_spread(ratio.ratio, '.3f')}"


def _program_cells(timing: Timing) -> list[str]:
  program, ms = timing.program, None
  if timing.seconds is not None:
    ms = Quartiles(*(1e3 * value for value in timing.seconds))
  sizes = (
    *(program.temporaries, program.arguments, program.outputs),
    *(program.peak, program.optimizer_state),
  )
  return [
    timing.case,
    _noted(timing.name, program.note),
    _cell(ms and ms.median, ".3f"),
    _spread(ms, ".3f"),
    _cell(program.compile_seconds, ".2f"),
    *(_cell(_millionths(size), ".3f") for size in sizes),
    _cell(_millionths(program.flops), ".2f"),
  ]


def _titled(table: Table) -> str:
  rows = [["-" if cell is None else str(cell) for cell in row] for row in table.rows]
  return f"{table.title}\n\n{_table(table.header, rows)}"


def _millionths(value: float | None) -> float | None:
  return None if value is None else value / 1e6


def _cell(value: float | None, form: str) -> str:
  return "-" if value is None else f"{value:{form}}"


def _spread(values: Quartiles | None, form: str) -> str:
  return "-" if values is None else f"{values.low:{form}} to {values.high:{form}}"


def _noted(name: str, note: str | None) -> str:
  return f"{name} ({note})" if note else name


def _as_dict(values: Quartiles | None) -> dict[str, float] | None:
  return None if values is None else values._asdict()


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  lines = [header, ["---"] * len(header), *rows]
  return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
