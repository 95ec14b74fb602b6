"""Numbers and figures of finished runs: pure functions from arrays to either."""

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from .predictions import Predictions

_CONFIDENCE = 0.95


class Interval(NamedTuple):
  """A mean over members and half the width of its 95 % interval, 0 with one member."""

  mean: np.ndarray
  half: np.ndarray


class Reliability(NamedTuple):
  """Mean confidence and accuracy of the examples in each bin of confidence, and the error.

  Attributes:
    confidence: `[bins]`; NaN where a bin is empty, as for the accuracy.
    accuracy: `[bins]`.
    count: `[bins]`, examples in each.
    ece: the expected calibration error, sum of `count / N * |accuracy - confidence|`.
  """

  confidence: np.ndarray
  accuracy: np.ndarray
  count: np.ndarray
  ece: float


def interval(values: Any) -> Interval:
  """Mean and interval by Student's t over the first axis, which counts the members.

  Example:
    >>> mean, half = interval([1.0, 2.0, 3.0])  # 2 +- 4.303 * 1 / sqrt(3)
    >>> round(float(mean), 3), round(float(half), 3)
    (2.0, 2.484)
  """
  from scipy import stats

  values = np.asarray(values, np.float64)
  members = len(values)
  mean = values.mean(axis=0)
  if members == 1:
    return Interval(mean, np.zeros_like(mean))
  quantile = stats.t.ppf((1 + _CONFIDENCE) / 2, members - 1)
  return Interval(mean, quantile * values.std(axis=0, ddof=1) / math.sqrt(members))


def log_probabilities(logits: np.ndarray) -> np.ndarray:
  """Logarithms of the softmax of `logits [N, classes]`."""
  logits = logits.astype(np.float64)
  logits = logits - logits.max(axis=-1, keepdims=True)
  return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def losses(predictions: Predictions) -> np.ndarray:
  """The negative log-likelihood `[N]` of each label."""
  labels = predictions["labels"][:, None]
  return -np.take_along_axis(log_probabilities(predictions["logits"]), labels, axis=1)[:, 0]


def correct(predictions: Predictions) -> np.ndarray:
  """Whether each of N examples is classified correctly."""
  return predictions["logits"].argmax(axis=-1) == predictions["labels"]


def reliability(predictions: Predictions, bins: int = 15) -> Reliability:
  """Confidence, the largest probability, against accuracy in equal bins over (0, 1].

  References:
    Guo, Pleiss, Sun, Weinberger. On Calibration of Modern Neural Networks. 2017.
    arXiv:1706.04599.
  """
  confidence = np.exp(log_probabilities(predictions["logits"]).max(axis=-1))
  right = correct(predictions)
  place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
  count = np.bincount(place, minlength=bins)
  mean_confidence = _means(confidence, place, bins)
  accuracy = _means(right, place, bins)
  gap = np.nan_to_num(np.abs(accuracy - mean_confidence))
  return Reliability(mean_confidence, accuracy, count, float(gap @ count / len(right)))


def accuracy_by(predictions: Predictions, column: str, size: int | None = None) -> np.ndarray:
  """The accuracy among the examples of each value of a column; NaN where there are none.

  Args:
    predictions: of one run.
    column: `labels` or `group`.
    size: number of values; by default as many as occur.
  """
  values = predictions[column]
  return _means(correct(predictions), values, size or int(values.max()) + 1)


def numbers(predictions: Predictions) -> dict[str, float]:
  """Scalars of one run: accuracy, likelihood, calibration and the worst of its parts."""
  found = {
    "accuracy": float(correct(predictions).mean()),
    "nll": float(losses(predictions).mean()),
    "ece": reliability(predictions).ece,
    "worst class": float(np.nanmin(accuracy_by(predictions, "labels"))),
  }
  if "group" in predictions:
    found["worst group"] = float(np.nanmin(accuracy_by(predictions, "group")))
  return found


def curves(runs: Mapping[str, Sequence[Sequence[Mapping[str, float]]]]) -> Any:
  """A panel for each metric, with a line and a band for each entry of `runs`.

  Args:
    runs: the rows of `metrics.csv` of every member, by label.
  """
  tables = [rows for members in runs.values() for rows in members]
  names = dict.fromkeys(name for rows in tables for row in rows for name in row if name != "step")
  figure, axes = panels(len(names))
  for axis, name in zip(axes, names, strict=True):
    for label, members in runs.items():
      steps, values = common_points(members, name)
      if not steps:
        continue
      mean, half = interval(values)
      axis.plot(steps, mean, label=label, marker="." if len(steps) < 50 else None)
      if len(members) > 1:
        axis.fill_between(steps, mean - half, mean + half, alpha=0.25, linewidth=0)
    axis.set(title=name, xlabel="step")
    axis.legend(fontsize="small")
  return figure


def common_points(
  members: Sequence[Sequence[Mapping[str, float]]], name: str
) -> tuple[list[float], np.ndarray]:
  """The steps at which every member has a metric, and its values `[members, steps]`.

  Example:
    >>> short, long = [{"step": 1, "loss": 3.0}], [{"step": 1, "loss": 5.0}, {"step": 2}]
    >>> common_points([short, long], "loss")
    ([1], array([[3.],
           [5.]]))
  """
  points = [{row["step"]: row[name] for row in rows if name in row} for rows in members]
  steps = sorted(set.intersection(*map(set, points)))
  return steps, np.array([[own[step] for step in steps] for own in points])


def reliability_diagrams(runs: Mapping[str, Sequence[Predictions]], bins: int = 15) -> Any:
  """A panel for each entry of `runs`: the bins of all its members, and their mean ECE."""
  figure, axes = panels(len(runs))
  for axis, (label, members) in zip(axes, runs.items(), strict=True):
    whole = {name: np.concatenate([own[name] for own in members]) for name in ("logits", "labels")}
    shown = reliability(whole, bins)
    error = interval([reliability(own, bins).ece for own in members])
    centres = (np.arange(bins) + 0.5) / bins
    share = shown.count / shown.count.sum()
    axis.bar(centres, np.nan_to_num(shown.accuracy), 1 / bins, label="accuracy", edgecolor="white")
    axis.plot(centres, share, color="0.4", drawstyle="steps-mid", label="share of examples")
    axis.plot([0, 1], [0, 1], color="black", linestyle=":", label="calibrated")
    axis.set(title=f"{label}\nECE {_text(error, len(members))}", xlabel="confidence")
    axis.set(xlim=(0, 1), ylim=(0, 1.02))
    axis.legend(fontsize="small", loc="upper left")
  return figure


def accuracy_bars(runs: Mapping[str, Sequence[Predictions]], column: str) -> Any:
  """A bar for each value of a column and each entry of `runs`, intervals over its members."""
  all_values = [own[column] for members in runs.values() for own in members]
  size = 1 + max(int(values.max()) for values in all_values)
  figure, (axis,) = panels(1, wide=True)
  width = 0.8 / len(runs)
  for i, (label, members) in enumerate(runs.items()):
    mean, half = interval([accuracy_by(own, column, size) for own in members])
    places = np.arange(size) - 0.4 + (i + 0.5) * width
    error = {"yerr": half, "capsize": 3} if len(members) > 1 else {}
    axis.bar(places, mean, width, label=label, **error)
  name = {"labels": "class"}.get(column, column)
  axis.set(title=f"accuracy by {name}", xlabel=name, ylim=(0, 1.05), xticks=np.arange(size))
  axis.legend(fontsize="small", loc="lower right")
  return figure


def loss_histograms(runs: Mapping[str, Sequence[Predictions]]) -> Any:
  """How the losses of single examples are distributed, those of all members together."""
  values = {
    label: np.concatenate([losses(own) for own in members]) for label, members in runs.items()
  }
  edges = np.linspace(0, max(1e-6, *(own.max() for own in values.values())), 41)
  figure, (axis,) = panels(1, wide=True)
  for label, own in values.items():
    weights = np.full(len(own), 1 / len(own))
    axis.hist(own, edges, weights=weights, histtype="step", linewidth=1.5, label=label)
  axis.set(title="losses of examples", xlabel="negative log-likelihood", ylabel="share")
  axis.set_yscale("log")
  axis.legend(fontsize="small")
  return figure


def spectrum(points: np.ndarray, density: np.ndarray, largest: np.ndarray) -> Any:
  """The density of a Hessian's eigenvalues, and its largest ones as ticks."""
  figure, (axis,) = panels(1, wide=True)
  axis.plot(points, density, label="density")
  floor = 1e-3 / max(1e-12, float(np.ptp(points)))
  axis.plot(largest, np.full(len(largest), floor), "|", color="black", label="largest", ms=12)
  axis.set(title="eigenvalues of the Hessian", xlabel="eigenvalue", ylabel="density")
  axis.set_yscale("log")
  axis.set_ylim(floor / 2, max(10 * floor, 2 * float(np.max(density))))
  axis.legend(fontsize="small")
  return figure


def loss_lines(lines: Mapping[str, Mapping[str, np.ndarray]]) -> Any:
  """A panel for each line: the loss, `loss [N]`, at the positions `at [N]`."""
  figure, axes = panels(len(lines))
  for axis, (title, line) in zip(axes, lines.items(), strict=True):
    axis.plot(line["at"], line["loss"], marker=".")
    axis.set_title(title, wrap=True, fontsize="small")
    axis.set(xlabel="position", ylabel="loss")
  return figure


def loss_plane(at: np.ndarray, losses: np.ndarray) -> Any:
  """Contours of the losses `[N, N]` over a square, logarithmic, as they grow fast."""
  figure, (axis,) = panels(1, wide=True)
  heights = np.log10(np.maximum(losses, np.finfo(np.float32).tiny))
  drawn = axis.contourf(at, at, heights.T, levels=30)
  axis.plot(0, 0, "+", color="white", ms=12)
  figure.colorbar(drawn, ax=axis, label="log10 of the loss")
  axis.set(title="loss over a plane", xlabel="first direction", ylabel="second", aspect="equal")
  return figure


def class_extremes(smallest: np.ndarray, largest: np.ndarray) -> Any:
  """Bars of each class's smallest and largest eigenvalue, `[classes]`."""
  figure, axes = panels(2)
  for axis, title, values in zip(axes, ("smallest", "largest"), (smallest, largest), strict=True):
    axis.bar(np.arange(len(values)), np.nan_to_num(values))
    axis.set(title=f"{title} eigenvalue by class", xlabel="class", xticks=np.arange(len(values)))
  return figure


def bars(title: str, values: Mapping[str, float]) -> Any:
  """A named bar for each value."""
  figure, (axis,) = panels(1, wide=True)
  axis.barh(list(values), [float(value) for value in values.values()])
  axis.invert_yaxis()
  axis.set_title(title)
  return figure


def _means(values: np.ndarray, place: np.ndarray, size: int) -> np.ndarray:
  """The mean of the values at each place; NaN where there are none."""
  count = np.bincount(place, minlength=size)
  sums = np.bincount(place, weights=values, minlength=size)
  return np.divide(sums, count, out=np.full(size, np.nan), where=count > 0)


def _text(value: Interval, members: int) -> str:
  return f"{value.mean:.3f}" + (f" ± {value.half:.3f}" if members > 1 else "")


def panels(count: int, wide: bool = False) -> tuple[Any, Sequence[Any]]:
  """A figure and its `count` axes, three in a row."""
  # A first import may report that it builds its font cache.
  logging.getLogger("matplotlib").setLevel(logging.ERROR)
  from matplotlib.backends import backend_agg
  from matplotlib.figure import Figure

  across = min(3, max(1, count))
  down = max(1, math.ceil(count / across))
  figure = Figure(figsize=((7.5 if wide else 4.5) * across, 3.5 * down), layout="constrained")
  backend_agg.FigureCanvasAgg(figure)
  axes = list(figure.subplots(down, across, squeeze=False).ravel())
  for axis in axes[count:]:
    axis.set_visible(False)
  return figure, axes[:count]
