"""What a run records and shows: metrics of methods, CSV, TensorBoard, curves, progress."""

import csv
import json
import logging
import math
import os
import pathlib
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TextIO

import jax

from . import check

PathLike = str | os.PathLike[str]

_SECONDS_BETWEEN_LOOKS = 0.2
_ROWS_IN_WAITING = 100


def collect_metrics(state: Any) -> dict[str, jax.Array]:
  """The `metrics` of every method in a tree of states, as `{"method/key": scalar}`.

  A method is named after its state: the metrics of a `SamState` become `sam/...`, those
  of a second one in the same chain `sam_2/...`. Pure, for use inside a jitted step.

  Example:
    >>> from typing import NamedTuple
    >>> class TopKState(NamedTuple):
    ...   metrics: dict
    >>> collect_metrics((TopKState({"bytes_sent": 12}), (), TopKState({"bytes_sent": 8})))
    {'top_k/bytes_sent': 12, 'top_k_2/bytes_sent': 8}
  """
  collected: dict[str, jax.Array] = {}
  seen: dict[str, int] = {}
  for node in _states_with_metrics(state):
    name = _method_name(type(node))
    seen[name] = seen.get(name, 0) + 1
    prefix = name if seen[name] == 1 else f"{name}_{seen[name]}"
    collected |= {f"{prefix}/{key}": value for key, value in node.metrics.items()}
  return collected


class MetricsLog:
  """Scalars of a run by step, in `metrics.csv` and as TensorBoard events.

  Rows may wait for their arrays: nothing blocks the device until `flush`, which belongs
  before a checkpoint, so that every row up to a saved step is on disk. Columns may come
  late; cells without a value are empty.

  Args:
    directory: the run's; made when missing.
    resume_step: the step that a checkpoint gave back. Later rows of an earlier process
      are dropped, and TensorBoard is told to forget them; 0 drops everything.

  Example:
    >>> import tempfile
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> with MetricsLog(folder) as log:
    ...   log.write(1, {"loss": 0.5})
    ...   log.write(2, {"loss": 0.25})
    ...   log.write(2, {"validation/accuracy": 0.75})
    >>> print((folder / "metrics.csv").read_text().strip())
    step,loss,validation/accuracy
    1,0.5,
    2,0.25,0.75
  """

  def __init__(self, directory: PathLike, *, resume_step: int = 0):
    folder = pathlib.Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    self._path = folder / "metrics.csv"
    self._columns, rows = _read(self._path)
    kept = [row for row in rows if _step_of(row) <= resume_step]
    if not kept:
      self._columns = ["step"]
    self._waiting: dict[int, dict[str, Any]] = {}
    self._last_step = max(map(_step_of, kept), default=0)
    self._rewrite(kept)
    self._events = _Events(folder, resume_step)

  def __enter__(self) -> "MetricsLog":
    return self

  def __exit__(self, *_exception: object) -> None:
    self.close()

  def write(self, step: int, values: Mapping[str, Any]) -> None:
    """Adds values to the row of `step`; scalars or arrays that are still being computed."""
    self._waiting.setdefault(step, {}).update(values)
    if len(self._waiting) > _ROWS_IN_WAITING:
      self._write_rows(list(self._waiting)[: _ROWS_IN_WAITING // 2])

  def flush(self) -> None:
    """Writes every row so far, waiting for its values."""
    self._write_rows(list(self._waiting))
    self._events.flush()

  def close(self) -> None:
    """Flushes and closes the files."""
    self.flush()
    self._events.close()
    self._file.close()

  def _write_rows(self, steps: Sequence[int]) -> None:
    rows = {step: _numbers(self._waiting.pop(step)) for step in steps}
    cells = {step: _cells(step, row) for step, row in rows.items()}
    added = dict.fromkeys(name for row in cells.values() for name in row)
    if steps and (not added.keys() <= set(self._columns) or min(steps) <= self._last_step):
      self._file.close()
      self._columns += [name for name in added if name not in self._columns]
      self._rewrite(_merged(_read(self._path)[1], cells))
    else:
      for row in cells.values():
        self._append(row)
    self._last_step = max([self._last_step, *steps])
    for step, row in rows.items():
      self._events.write(step, row)

  def _append(self, row: Mapping[str, str]) -> None:
    csv.DictWriter(self._file, self._columns, lineterminator="\n").writerow(row)

  def _rewrite(self, rows: Sequence[Mapping[str, str]]) -> None:
    """Puts a new file in the place of the old one at once, and goes on at its end."""
    unfinished = self._path.with_suffix(".unfinished")
    with unfinished.open("w", newline="") as file:
      writer = csv.DictWriter(file, self._columns, lineterminator="\n")
      writer.writeheader()
      writer.writerows(rows)
    unfinished.replace(self._path)
    self._file = self._path.open("a", newline="", buffering=1)


class NoLog(MetricsLog):
  """The log of a process that writes nothing, since another one does."""

  def __init__(self):
    pass

  def write(self, step: int, values: Mapping[str, Any]) -> None:
    """Drops the values."""

  def flush(self) -> None:
    """Nothing is waiting."""

  def close(self) -> None:
    """Nothing is open."""


def read_metrics(path: PathLike) -> list[dict[str, float]]:
  """The rows of a `metrics.csv`, each without its empty cells."""
  rows = _read(pathlib.Path(path))[1]
  return [{name: float(cell) for name, cell in row.items() if cell} for row in rows]


class _Events:
  """A TensorBoard event file, which makes TensorBoard forget what came after `resume_step`."""

  def __init__(self, folder: pathlib.Path, resume_step: int):
    from tensorboardX import event_file_writer
    from tensorboardX.proto import event_pb2, summary_pb2

    events: Any = event_pb2
    summaries: Any = summary_pb2
    self._event, self._summary = events.Event, summaries.Summary
    # Files are named by the second: the suffix keeps a quick restart from overwriting.
    suffix = f".{resume_step}"
    self._file = event_file_writer.EventsWriter(str(folder / "events"), suffix)
    start = events.SessionLog(status=events.SessionLog.START)
    self._write(step=resume_step + 1, session_log=start)
    self.flush = self._file.flush
    self.close = self._file.close

  def write(self, step: int, values: Mapping[str, float]) -> None:
    summary = self._summary()
    for name, value in values.items():
      summary.value.add(tag=name, simple_value=value)
    self._write(step=step, summary=summary)

  def _write(self, **fields: Any) -> None:
    self._file.write_event(self._event(wall_time=time.time(), **fields))


class Progress:
  """How a run shows itself: a live bar, one plain line an epoch, or nothing.

  The bar shows loss, accuracy, examples a second and the time left. It looks at the
  metrics a few times a second, and only at those that are already computed.

  Args:
    total_steps: steps of the whole run.
    batch_size: examples a step.
    start_step: steps done by an earlier process.
    show: `bar`, `lines` or `off`; `auto` is a bar on a terminal and nothing elsewhere.
    stream: where to; standard error.

  Raises:
    ValueError: `show` is none of these.
  """

  def __init__(
    self,
    total_steps: int,
    batch_size: int,
    *,
    start_step: int = 0,
    show: str = "auto",
    stream: TextIO | None = None,
  ):
    check.one_of("show", show, ("auto", "bar", "lines", "off"))
    self._stream = stream or sys.stderr
    if show == "auto":
      show = "bar" if self._stream.isatty() else "off"
    self._lines = show == "lines"
    self._batch_size = batch_size
    self._next_look = 0.0
    self._newest: dict[str, Any] = {}
    self._step_values = ""
    self._epoch_values = ""
    self._bar = None
    if show == "bar":
      self._bar = _bar(total_steps * batch_size, start_step * batch_size, self._stream)

  def __enter__(self) -> "Progress":
    return self

  def __exit__(self, *_exception: object) -> None:
    self.close()

  def step(self, metrics: Mapping[str, Any]) -> None:
    """One more step is done (or on its way), with these metrics."""
    if self._bar is None:
      return
    now = time.monotonic()
    # Those of the step before: this one's are hardly ever there yet.
    shown, self._newest = self._newest, _loss_and_accuracy(metrics)
    if now >= self._next_look and shown and all(map(_is_ready, shown.values())):
      self._next_look = now + _SECONDS_BETWEEN_LOOKS
      self._step_values = _line(shown)
      self._show_values()
    self._bar.update(self._batch_size)

  def epoch(self, epoch: int, epochs: int, values: Mapping[str, Any]) -> None:
    """The `epoch`-th of `epochs` is done, with these values."""
    if self._lines:
      print(f"epoch {epoch}/{epochs}  {_line(values)}", file=self._stream, flush=True)
    elif self._bar is not None:
      self._epoch_values = _line({name: x for name, x in values.items() if name != "loss"})
      self._show_values()

  def say(self, line: str) -> None:
    """Prints a line, however little is shown, without tearing the bar."""
    if self._bar is not None:
      self._bar.write(line, file=self._stream)
    else:
      print(line, file=self._stream, flush=True)

  def close(self) -> None:
    """Leaves the bar as it stands."""
    if self._bar is not None:
      self._bar.close()

  def _show_values(self) -> None:
    assert self._bar is not None
    parts = [part for part in (self._step_values, self._epoch_values) if part]
    self._bar.set_postfix_str("  ".join(parts), refresh=False)


def plot_curves(csv_path: PathLike, png_path: PathLike) -> None:
  """Draws every column of a `metrics.csv` over the steps.

  Columns with the same last name (`accuracy`, `validation/accuracy`) share a panel.
  """
  # A first import may report that it builds its font cache.
  logging.getLogger("matplotlib").setLevel(logging.ERROR)
  from matplotlib.backends import backend_agg
  from matplotlib.figure import Figure

  rows = read_metrics(csv_path)
  names = list(dict.fromkeys(name for row in rows for name in row if name != "step"))
  panels = list(dict.fromkeys(name.rpartition("/")[2] for name in names))
  across = min(3, max(1, len(panels)))
  down = max(1, math.ceil(len(panels) / across))
  figure = Figure(figsize=(4.5 * across, 3 * down), layout="constrained")
  backend_agg.FigureCanvasAgg(figure)
  axes = figure.subplots(down, across, squeeze=False).ravel()
  for axis, panel in zip(axes, panels, strict=False):
    for name in names:
      if name.rpartition("/")[2] == panel:
        points = [(row["step"], row[name]) for row in rows if name in row]
        axis.plot(*zip(*points, strict=True), label=name, marker="." if len(points) < 50 else None)
    axis.set(title=panel, xlabel="step")
    axis.legend(fontsize="small")
  for axis in axes[len(panels) :]:
    axis.set_visible(False)
  _replace_with(png_path, lambda path: figure.savefig(path, format="png", dpi=110))


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
  """A plain text table: the first column to the left, the others to the right.

  Example:
    >>> print(table(["", "final", "best"], [["test accuracy", 0.98123, 1], ["loss", 0.1, None]]))
                    final  best
    test accuracy  0.9812     1
    loss              0.1     -
  """
  lines = [[_cell(value) for value in row] for row in [header, *rows]]
  widths = [max(map(len, column)) for column in zip(*lines, strict=True)]

  def aligned(line):
    first, *others = zip(line, widths, strict=True)
    return "  ".join([first[0].ljust(first[1]), *(text.rjust(width) for text, width in others)])

  return "\n".join(aligned(line).rstrip() for line in lines)


def write_json(path: PathLike, value: Any) -> None:
  """Writes JSON at once or not at all; numbers that are not finite become null."""
  text = json.dumps(_plain_values(value), indent=2, allow_nan=False) + "\n"
  _replace_with(path, lambda unfinished: unfinished.write_text(text))


def _has_metrics(node: Any) -> bool:
  return hasattr(node, "_fields") and isinstance(getattr(node, "metrics", None), dict)


def _states_with_metrics(tree: Any) -> Iterator[Any]:
  for node in jax.tree.leaves(tree, is_leaf=_has_metrics):
    if _has_metrics(node):
      yield node
      fields = zip(node._fields, node, strict=True)
      yield from _states_with_metrics([value for name, value in fields if name != "metrics"])


def _method_name(kind: type) -> str:
  words = re.findall(r"[A-Z]+[0-9]*(?![a-z])|[A-Z][a-z0-9]*", kind.__name__.removesuffix("State"))
  return "_".join(words).lower() or kind.__name__.lower()


def _read(path: pathlib.Path) -> tuple[list[str], list[dict[str, str]]]:
  """Columns and whole rows of a CSV; what a killed process left unfinished is not there."""
  if not path.exists():
    return ["step"], []
  *lines, _unfinished = path.read_text(errors="replace").split("\n")
  columns, *cells = list(csv.reader(lines)) or [["step"]]
  if columns[:1] != ["step"]:
    return ["step"], []
  whole = [row for row in cells if len(row) == len(columns) and row[0].isdecimal()]
  return columns, [dict(zip(columns, row, strict=True)) for row in whole]


def _step_of(row: Mapping[str, str]) -> int:
  return int(row["step"])


def _cells(step: int, values: Mapping[str, float]) -> dict[str, str]:
  return {"step": str(step), **{name: f"{value:.9g}" for name, value in values.items()}}


def _merged(
  rows: Sequence[dict[str, str]], added: Mapping[int, dict[str, str]]
) -> list[dict[str, str]]:
  """The rows by step, with what was added to each."""
  by_step = {_step_of(row): row for row in rows}
  for step, cells in added.items():
    by_step[step] = {**by_step.get(step, {}), **cells}
  return [by_step[step] for step in sorted(by_step)]


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
  fetched = jax.device_get(dict(values))
  return {name: float(fetched[name]) for name in values}


def _loss_and_accuracy(metrics: Mapping[str, Any]) -> dict[str, Any]:
  return {name: metrics[name] for name in ("loss", "accuracy") if name in metrics}


def _is_ready(value: Any) -> bool:
  return getattr(value, "is_ready", lambda: True)()


def _line(values: Mapping[str, Any]) -> str:
  return "  ".join(f"{name} {value:.4g}" for name, value in _numbers(values).items())


def _bar(total: int, done: int, stream: TextIO) -> Any:
  import tqdm

  return tqdm.tqdm(
    total=total,
    initial=done,
    file=stream,
    unit=" examples",
    unit_scale=True,
    dynamic_ncols=True,
    bar_format="{percentage:3.0f}%|{bar:20}| {rate_fmt}, {remaining} left{postfix}",
  )


def _cell(value: Any) -> str:
  if value is None:
    return "-"
  if isinstance(value, str | int):
    return str(value)
  return f"{float(value):.4g}"


def _plain_values(value: Any) -> Any:
  if isinstance(value, Mapping):
    return {str(key): _plain_values(item) for key, item in value.items()}
  if isinstance(value, list | tuple):
    return [_plain_values(item) for item in value]
  if value is None or isinstance(value, str | bool | int):
    return value
  if isinstance(value, os.PathLike):
    return str(value)
  number = value if isinstance(value, float) else value.item()
  return None if isinstance(number, float) and not math.isfinite(number) else number


def _replace_with(path: PathLike, write: Callable[[pathlib.Path], Any]) -> None:
  """Lets `write` make a file, and puts it in the place of `path` when it is whole."""
  path = pathlib.Path(path)
  unfinished = path.with_name(f".{path.name}.unfinished")
  write(unfinished)
  unfinished.replace(path)
