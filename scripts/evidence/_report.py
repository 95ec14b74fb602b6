"""What an experiment found, written down: JSON, figures, and one table of all."""

import pathlib
import platform
from collections.abc import Mapping
from typing import Any

import jax

from jaxrl.metrics import table, write_json
from scripts.evidence import _figure, _results
from scripts.evidence._experiment import RULE, Experiment, Judged, Result

_HEAD = f"""\
# Evidence

What the papers claim, tried at a size that two CPU cores finish in minutes. Written by
`python -m scripts.evidence NAME ...`; change the experiments, not this file.

{RULE}

A verdict is `stale` where the method's file or the experiment's has changed since, `mixed`
where a method's claims differ. `not shown` is about this size: it refutes nothing.

"""
_COLUMNS = (
  *("experiment", "claim", "statistic", "method", "baseline"),
  *("difference", "of the null", "verdict"),
)


def write(folder: pathlib.Path, name: str, experiment: Experiment, result: Result) -> None:
  """Writes the JSON and the figure of one result, and the table of all that are there."""
  folder.mkdir(parents=True, exist_ok=True)
  write_json(folder / f"{name}.json", as_json(name, experiment, result))
  _figure.figure(result).savefig(folder / f"{name}.png", dpi=80)
  write_table(folder)


def write_table(folder: pathlib.Path) -> None:
  """Writes README.md from the results in a folder."""
  (folder / "README.md").write_text(markdown(_results.read(folder)), encoding="utf-8")


def as_json(name: str, experiment: Experiment, result: Result) -> dict[str, Any]:
  """All that is known of a result, numbers of single seeds included."""
  return {
    "verdict": result.verdict,
    "methods": experiment.methods,
    "family": experiment.family,
    "setup": experiment.setup,
    "rule": RULE,
    "tuned_by": f"{experiment.tuned} {experiment.tuned_by}",
    "seeds": experiment.seeds,
    "tuning_seeds": experiment.tuning_seeds,
    "claims": [_claim_as_json(judged, result) for judged in result.claims],
    "arms": {
      name: {
        "settings": arm.scores,
        "chosen": arm.chosen,
        "measured": {key: values.tolist() for key, values in arm.measured.items()},
      }
      for name, arm in result.arms.items()
    },
    "seconds": round(result.seconds, 1),
    "minutes": experiment.minutes,
    "machine": f"jax {jax.__version__}, {jax.devices()[0].device_kind}, {platform.machine()}",
    "files": _results.hashes(name, experiment.methods),
  }


def _claim_as_json(judged: Judged, result: Result) -> dict[str, Any]:
  claim = judged.claim
  return {
    **claim._asdict(),
    "means": {arm: _mean(arm, judged, result) for arm in ("method", "baseline")},
    "difference": judged.method._asdict(),
    "null_difference": judged.null._asdict(),
  }


def _mean(arm: str, judged: Judged, result: Result) -> float:
  chosen = result.arms[getattr(judged.claim, arm)]
  return float(chosen.measured[judged.claim.statistic].mean())


def printed(name: str, result: Result) -> str:
  """The claims of one result as plain text."""
  rows = [
    [
      judged.claim.text,
      _mean("method", judged, result),
      _mean("baseline", judged, result),
      _interval(judged.method._asdict()),
      _interval(judged.null._asdict()),
      judged.method.verdict,
    ]
    for judged in result.claims
  ]
  return table([name, "method", "baseline", "difference", "of the null", "verdict"], rows)


def markdown(results: Mapping[str, Mapping[str, Any]]) -> str:
  """README.md: a table for each family, then every experiment."""
  families: dict[str, list[str]] = {}
  for name, result in results.items():
    families.setdefault(result["family"], []).append(name)
  parts = [_HEAD]
  for family, members in sorted(families.items()):
    parts.append(f"## {family.capitalize()}\n\n{_row(_COLUMNS)}{_row(['---'] * len(_COLUMNS))}")
    parts += [_row(cells) for name in members for cells in _cells(name, results[name])]
    parts.append("\n")
  parts.append("## Experiments\n\n")
  parts += [_section(name, result) for name, result in results.items()]
  return "".join(parts).rstrip("\n") + "\n"


def _cells(name: str, result: Mapping[str, Any]) -> list[list[str]]:
  stale = result["current"] == _results.STALE
  return [
    [
      f"[{name}](#{name})",
      claim["text"],
      claim["statistic"],
      *(_number(claim["means"][arm]) for arm in ("method", "baseline")),
      _interval(claim["difference"]),
      _interval(claim["null_difference"]),
      _results.STALE if stale else claim["difference"]["verdict"],
    ]
    for claim in result["claims"]
  ]


def _section(name: str, result: Mapping[str, Any]) -> str:
  arms = [["arm", "chosen", "among"], ["---"] * 3]
  arms += [
    [arm, f"`{value['chosen']}`", str(len(value["settings"]))]
    for arm, value in result["arms"].items()
  ]
  took = f"{result['seconds']:.0f} s, at most {result['minutes']:g} minutes"
  return (
    f"### {name}\n\n"
    f"{result['setup']} Tuned by {result['tuned_by']}. {len(result['seeds'])} seeds. "
    f"Verdict: {result['current']}. {took}; {result['machine']}. "
    f"[Numbers]({name}.json).\n\n" + "".join(map(_row, arms)) + f"\n![{name}]({name}.png)\n\n"
  )


def _row(cells: Any) -> str:
  return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |\n"


def _number(value: float | None) -> str:
  return "-" if value is None else f"{value:.4g}"


def _interval(difference: Mapping[str, Any]) -> str:
  numbers = [difference[name] for name in ("mean", "low", "high")]
  if any(number is None for number in numbers):  # what JSON keeps of those that are not finite
    return "not a number"
  return "{:+.3g} [{:+.3g}, {:+.3g}]".format(*numbers)
