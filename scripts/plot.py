"""Plots finished runs: curves, calibration, accuracy by class and group, losses.

python -m scripts.plot runs/first runs/second
"""

import dataclasses
import json
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
import tyro

from jaxrl import plots, predictions
from jaxrl.metrics import read_metrics, table
from scripts.train import MATTERS_NOT

_NOT_COMPARED = (*MATTERS_NOT, "seed", "seeds")


@dataclasses.dataclass(frozen=True)
class Config:
  """Plot finished runs: curves, calibration, accuracy by class and group, losses.

  The members of a run with several seeds become one line with a 95 % interval; so do runs
  that differ in nothing but the seed.
  """

  runs: Annotated[tuple[pathlib.Path, ...], tyro.conf.Positional]
  """Folders of runs."""
  out: pathlib.Path | None = None
  """Folder of the pictures; by default plots/ in the first run."""
  split: Literal["test", "validation"] = "test"
  """Whose predictions are shown."""


def grouped(folders: Sequence[pathlib.Path]) -> dict[str, list[pathlib.Path]]:
  """The folders of members by label.

  Raises:
    ValueError: there are none, or one of them is no run.
  """
  if not folders:
    raise ValueError("runs must name at least one folder of a run, such as runs/first")
  groups: dict[str, list[pathlib.Path]] = {}
  for folder in folders:
    members = sorted(path.parent for path in folder.glob("seed-*/metrics.csv"))
    if not members and not (folder / "metrics.csv").exists():
      raise ValueError(f"{folder} is no run: it has no metrics.csv")
    key = str(folder) if members else _settings(folder)
    groups.setdefault(key, []).extend(members or [folder])
  return _labelled(groups)


def _labelled(groups: Mapping[str, list[pathlib.Path]]) -> dict[str, list[pathlib.Path]]:
  labelled = {}
  for key, members in groups.items():
    first = members[0]
    name = first.parent.name if first.name.startswith("seed-") and key == str(first.parent) else ""
    name = name or first.resolve().name
    name += f" ({len(members)} members)" if len(members) > 1 else ""
    labelled[key if name in labelled else name] = members
  return labelled


def _settings(folder: pathlib.Path) -> str:
  """What runs have in common that differ in nothing but the seed."""
  path = folder / "config.json"
  if not path.exists():
    return str(folder)
  try:
    config = json.loads(path.read_text())
  except json.JSONDecodeError as error:
    raise ValueError(f"{path} is damaged: {error}") from error
  return json.dumps({k: v for k, v in config.items() if k not in _NOT_COMPARED}, sort_keys=True)


def figures(groups: Mapping[str, Sequence[pathlib.Path]], split: str) -> dict[str, Any]:
  """The figures by file name; those of predictions only where runs have written them."""
  rows = {
    label: [read_metrics(folder / "metrics.csv") for folder in members]
    for label, members in groups.items()
  }
  drawn = {"curves": plots.curves(rows)}
  known = _predictions(groups, split)
  if known:
    drawn["reliability"] = plots.reliability_diagrams(known)
    drawn["classes"] = plots.accuracy_bars(known, "labels")
    drawn["losses"] = plots.loss_histograms(known)
  with_group = {label: own for label, own in known.items() if all("group" in one for one in own)}
  if with_group:
    drawn["groups"] = plots.accuracy_bars(with_group, "group")
  return drawn


def _predictions(groups: Mapping[str, Sequence[pathlib.Path]], split: str) -> dict[str, list[Any]]:
  found = {
    label: [predictions.read(folder, split) for folder in members]
    for label, members in groups.items()
  }
  return {label: own for label, own in found.items() if all(one is not None for one in own)}


def summary(groups: Mapping[str, Sequence[pathlib.Path]], split: str) -> str:
  """A table of the numbers of each entry, means over its members."""
  known = _predictions(groups, split)
  missing = [label for label in groups if label not in known]
  lines = [f"no predictions of {', '.join(missing)}: curves only"] if missing else []
  if known:
    values = {label: [plots.numbers(one) for one in own] for label, own in known.items()}
    names = list(dict.fromkeys(name for own in values.values() for name in own[0]))
    means = [
      [label, *(np.mean([one[n] for one in own]) if n in own[0] else None for n in names)]
      for label, own in values.items()
    ]
    lines.insert(0, table([split, *names], means))
  return "\n".join(lines)


def main() -> None:
  """The command line."""
  config = tyro.cli(Config, prog="python -m scripts.plot")
  try:
    groups = grouped(config.runs)
    drawn = figures(groups, config.split)
    folder = config.out or config.runs[0] / "plots"
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in drawn.items():
      figure.savefig(folder / f"{name}.png", dpi=110)
  except (ValueError, OSError) as error:
    print("error: " + " ".join(str(error).split()), file=sys.stderr)
    sys.exit(2)
  print(summary(groups, config.split))
  print(f"written to {folder}: {', '.join(f'{name}.png' for name in drawn)}")


if __name__ == "__main__":
  main()
