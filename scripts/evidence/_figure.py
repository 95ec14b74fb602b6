"""The figure of a result: every seed's difference, and what was measured along the way."""

from typing import Any

import numpy as np

from jaxrl.plots import interval, panels
from scripts.evidence._experiment import Judged, Result, paired


def figure(result: Result) -> Any:
  """A panel for each claim, and one for each measurement with points in time."""
  series = _series(result)
  drawing, axes = panels(len(result.claims) + len(series))
  for axis, judged in zip(axes, result.claims, strict=False):
    _differences(axis, judged, result)
  for axis, name in zip(axes[len(result.claims) :], series, strict=True):
    _bands(axis, name, result)
  return drawing


def _series(result: Result) -> list[str]:
  """The measurements `[seeds, points]` that any arm has."""
  measured = [(name, x) for arm in result.arms.values() for name, x in arm.measured.items()]
  return list(dict.fromkeys(name for name, x in measured if x.ndim == 2))


def _differences(axis: Any, judged: Judged, result: Result) -> None:
  """Paired differences of method and null from the baseline, with means and intervals."""
  claim = judged.claim
  for row, which, outcome in ((1, "method", judged.method), (0, "null", judged.null)):
    values = paired(claim, result.arms, which)
    axis.plot(values, np.full(len(values), row), "o", alpha=0.35, color=f"C{1 - row}")
    half = (outcome.high - outcome.low) / 2
    axis.errorbar(outcome.mean, row + 0.15, xerr=half, fmt="D", capsize=4, color=f"C{1 - row}")
  sign = 1 if claim.direction == "higher" else -1
  axis.axvline(sign * claim.margin, color="black", linestyle=":")
  axis.set(yticks=[0, 1], yticklabels=[claim.null, claim.method], ylim=(-0.5, 1.5))
  axis.set(title=f"{claim.statistic}: {judged.method.verdict}", xlabel=f"minus {claim.baseline}")


def _bands(axis: Any, name: str, result: Result) -> None:
  """The mean of a measurement over the seeds of each arm, and its interval."""
  for label, arm in result.arms.items():
    if name in arm.measured:
      mean, half = interval(arm.measured[name])
      points = np.arange(1, len(mean) + 1)
      axis.plot(points, mean, label=label)
      axis.fill_between(points, mean - half, mean + half, alpha=0.25, linewidth=0)
  axis.set(title=name.removeprefix("curve/"))
  axis.legend(fontsize="small")
