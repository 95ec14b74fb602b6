"""Checkpoints of a run, written by Orbax in the background, and a graceful stop on signals.

A checkpoint is the arrays of a state, saved leaf by leaf under their number, a JSON item
(configuration, metrics, and path, shape and dtype of every leaf) and a checksum of each
file. The checksums are written before Orbax renames the finished folder into place, so a
checkpoint either lacks its place or has them, and damage is noticed before Orbax reads.
"""

import contextlib
import dataclasses
import json
import logging
import math
import os
import pathlib
import re
import shutil
import signal
import threading
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from . import check, processes
from .oracle import PerWorker

_CHECKSUMS = "checksums.json"
_META_FILE = "meta/metadata"
_UNFINISHED = ".orbax-checkpoint-tmp"
_REWRITTEN_LATER = ("_CHECKPOINT_METADATA", "commit_success.txt")


class CheckpointError(ValueError):
  """A checkpoint that cannot be used: damaged, of another configuration or another state."""


class Restored(NamedTuple):
  """What a checkpoint gives back.

  `notes` has one line for each damaged checkpoint that was passed over on the way.
  """

  state: Any
  step: int
  metrics: dict[str, float]
  extra: dict[str, Any]
  notes: tuple[str, ...]


class Checkpoints:
  """The checkpoints of one run.

  Args:
    directory: where they are; made when missing.
    config: the run's configuration, as JSON-able values. Saved with each checkpoint, and
      compared when one is restored.
    keep: how many of the latest to keep. With fewer than 2 there is nothing to fall back
      to when the newest is damaged.
    best_metric: a name in the metrics given to `save`; the best by it is kept besides.
    best_mode: "max" or "min".
    ignore: configuration fields that may differ (`"epochs"`, or dotted, `"data.dir"`).

  Example:
    >>> import tempfile
    >>> with Checkpoints(tempfile.mkdtemp(), {"lr": 0.1}) as checkpoints:
    ...   checkpoints.save(7, {"w": jnp.ones(3)})
    ...   restored = checkpoints.restore_latest({"w": jnp.zeros(3)})
    >>> restored.step, restored.state["w"].tolist()
    (7, [1.0, 1.0, 1.0])
  """

  def __init__(
    self,
    directory: str | os.PathLike[str],
    config: Mapping[str, Any],
    *,
    keep: int = 3,
    best_metric: str | None = None,
    best_mode: str = "max",
    ignore: Collection[str] = (),
  ):
    check.whole("keep", keep, 1)
    check.one_of("best_mode", best_mode, ("max", "min"))
    self._directory = pathlib.Path(directory).expanduser().resolve()
    self._config = json.loads(json.dumps(config))
    self._ignore = frozenset(ignore)
    self._ranking = _Ranking(best_metric, best_mode)
    self._saving: int | None = None
    # Here rather than by Orbax, which sweeps in the background, even past the end of the run.
    processes.of_first(self._make_tidy)
    with _quiet_orbax():
      self._manager = self._make_manager(keep)
    for step in self.steps():
      if _damage(self._folder(step), only=_META_FILE) is None:
        self._ranking.add(step, self._meta(step)["metrics"])

  def __enter__(self) -> "Checkpoints":
    return self

  def __exit__(self, *_exception: object) -> None:
    self.close()

  def steps(self) -> list[int]:
    """The steps of the checkpoints that exist, in order."""
    return sorted(self._manager.all_steps())

  def save(
    self,
    step: int,
    state: Any,
    metrics: Mapping[str, Any] | None = None,
    extra: Mapping[str, Any] | None = None,
  ) -> None:
    """Saves `state`; returns once its values are copied, and writes in the background.

    The state may be donated right after. Waits for the save before it, and raises what
    went wrong there. A step that is saved already is left as it is.

    Args:
      step: the number of steps done, which is also the position in the data.
      state: a pytree of arrays.
      metrics: scalars; the one called `best_metric` ranks the checkpoint.
      extra: further JSON-able values.
    """
    self.wait()
    if step in self.steps():
      return
    numbers = {name: float(value) for name, value in (metrics or {}).items()}
    leaves = _leaves(state)
    meta = {
      "config": self._config,
      "metrics": numbers,
      "extra": dict(extra or {}),
      "leaves": _descriptions(leaves),
    }
    self._ranking.add(step, numbers)
    self._saving = step
    arrays = {name: leaf.value for name, leaf in _stored(leaves).items()}
    items = ocp.args.Composite(arrays=ocp.args.StandardSave(arrays), meta=ocp.args.JsonSave(meta))
    with _quiet_orbax():
      self._manager.save(step, args=items)

  def restore_latest(self, abstract_state: Any) -> Restored | None:
    """The newest checkpoint that is whole; None when there is none at all.

    Damaged ones are passed over, each with a line in `notes`, and renamed to
    `damaged-<step>`, so that the run can save these steps again.

    Args:
      abstract_state: arrays or `jax.ShapeDtypeStruct`s; gives structure, dtype, shape and
        sharding of what comes back.

    Raises:
      CheckpointError: every checkpoint is damaged; or the newest whole one is of another
        configuration, of a state with other leaves, or of another number of workers in
        state that differs between them. Nothing is renamed then.
    """
    return self._restore_first(self.steps()[::-1], abstract_state)

  def restore_best(self, abstract_state: Any) -> Restored | None:
    """The best checkpoint by `best_metric`; None when no checkpoint has that metric.

    Damaged ones and errors: as for `restore_latest`.
    """
    self.wait()
    return self._restore_first(self._ranking.best_first(self.steps()), abstract_state)

  def wait(self) -> None:
    """Waits until what was saved is on disk; raises what went wrong there."""
    with _quiet_orbax():
      self._manager.wait_until_finished()

  def close(self) -> None:
    """Waits, and lets go of Orbax's threads."""
    with _quiet_orbax():
      self._manager.close()

  def _make_tidy(self) -> None:
    self._directory.mkdir(parents=True, exist_ok=True)
    for unfinished in self._directory.glob(f"*{_UNFINISHED}*"):
      shutil.rmtree(unfinished)

  def _make_manager(self, keep: int) -> ocp.CheckpointManager:
    options = ocp.CheckpointManagerOptions(
      create=False,
      multiprocessing_options=_waiting_without_devices(),
      preservation_policy=_LatestAndBest(keep, self._ranking),
      async_options=ocp.AsyncOptions(post_finalization_callback=self._write_checksums),
    )
    return ocp.CheckpointManager(self._directory, options=options)

  def _write_checksums(self) -> None:
    """Orbax calls this in process 0 alone, when all processes have written."""
    (unfinished,) = self._directory.glob(f"{self._saving}{_UNFINISHED}*")
    sums = {name: _checksum(unfinished / name) for name in _files(unfinished)}
    (unfinished / _CHECKSUMS).write_text(json.dumps(sums))

  def _folder(self, step: int) -> pathlib.Path:
    return self._directory / str(step)

  def _meta(self, step: int) -> dict[str, Any]:
    return json.loads((self._folder(step) / _META_FILE).read_text())

  def _restore_first(self, steps: Sequence[int], abstract_state: Any) -> Restored | None:
    self.wait()
    looked_at = processes.of_first(lambda: self._until_whole(steps))
    damaged = {step: damage for step, damage in looked_at if damage is not None}
    if len(damaged) < len(looked_at):
      step = looked_at[-1][0]
      restored = self._restore(step, abstract_state)
      notes = self._put_aside(damaged)
      return restored._replace(notes=tuple(f"{note}; took step {step}" for note in notes))
    if damaged:
      reasons = "; ".join(f"step {step}: {damage}" for step, damage in damaged.items())
      raise CheckpointError(f"every checkpoint in {self._directory} is damaged ({reasons})")
    return None

  def _until_whole(self, steps: Sequence[int]) -> list[tuple[int, str | None]]:
    """What is wrong with each of `steps`, up to the first one that is whole."""
    looked_at = []
    for step in steps:
      looked_at.append((step, _damage(self._folder(step))))
      if looked_at[-1][1] is None:
        break
    return looked_at

  def _restore(self, step: int, abstract_state: Any) -> Restored:
    meta = self._meta(step)
    leaves = _leaves(abstract_state)
    _refuse_other_config(self._folder(step), meta["config"], self._config, self._ignore)
    _refuse_other_workers(self._folder(step), meta["leaves"], abstract_state)
    _refuse_other_leaves(self._folder(step), meta["leaves"], _descriptions(leaves))
    wanted = {name: leaf.abstract() for name, leaf in _stored(leaves).items()}
    with _quiet_orbax():
      items = ocp.args.Composite(arrays=ocp.args.StandardRestore(wanted))
      arrays = self._manager.restore(step, args=items)["arrays"]
    values = [arrays[str(i)] if str(i) in arrays else leaf.empty() for i, leaf in enumerate(leaves)]
    state = jax.tree.unflatten(jax.tree.structure(abstract_state), values)
    return Restored(state, step, meta["metrics"], meta["extra"], ())

  def _put_aside(self, damaged: Mapping[int, str]) -> list[str]:
    if not damaged:
      return []
    processes.of_first(lambda: self._rename(damaged))
    self._manager.reload()
    return [
      f"the checkpoint of step {step} is damaged ({damage}), moved to {_aside(step)}"
      for step, damage in damaged.items()
    ]

  def _rename(self, steps: Collection[int]) -> None:
    for step in steps:
      aside = self._directory / _aside(step)
      shutil.rmtree(aside, ignore_errors=True)
      self._folder(step).rename(aside)


class StopRequest:
  """Whether the process was asked to stop: `requested`, and by which `signal`."""

  def __init__(self):
    self.signal: str | None = None

  @property
  def requested(self) -> bool:
    """True once SIGTERM or SIGINT has come."""
    return self.signal is not None


@contextlib.contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
  """Turns the first SIGTERM or SIGINT into a request, to be looked at between steps.

  A second one acts as it would have without this. Outside the main thread, where Python
  has no signal handlers, nothing is ever requested.

  Example:
    >>> with stop_on_signals() as stop:
    ...   signal.raise_signal(signal.SIGTERM)
    ...   stop.requested, stop.signal
    (True, 'SIGTERM')
  """
  stop = StopRequest()
  if threading.current_thread() is not threading.main_thread():
    yield stop
    return
  before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

  def restore():
    for number, handler in before.items():
      signal.signal(number, handler)

  def request(number, _frame):
    stop.signal = signal.Signals(number).name
    restore()

  for number in before:
    signal.signal(number, request)
  try:
    yield stop
  finally:
    restore()


class _Leaf(NamedTuple):
  """A leaf of a state: an array, or its shape and dtype."""

  path: str
  value: Any

  def describe(self) -> str:
    return f"{self.value.dtype}{list(self.value.shape)}"

  def sharding(self) -> jax.sharding.Sharding:
    own = getattr(self.value, "sharding", None)
    return own or jax.sharding.SingleDeviceSharding(jax.devices()[0])

  def abstract(self) -> jax.ShapeDtypeStruct:
    value = self.value
    return jax.ShapeDtypeStruct(value.shape, value.dtype, sharding=self.sharding())

  def empty(self) -> jax.Array:
    return jax.device_put(jnp.zeros(self.value.shape, self.value.dtype), self.sharding())


def _leaves(tree: Any) -> list[_Leaf]:
  leaves = []
  for path, value in jax.tree_util.tree_leaves_with_path(tree):
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    if not hasattr(value, "dtype"):
      raise TypeError(f"a checkpoint holds arrays; the leaf {name} is {value!r}")
    leaves.append(_Leaf(name, value))
  return leaves


def _stored(leaves: Sequence[_Leaf]) -> dict[str, _Leaf]:
  """The leaves that Orbax can save, which has no place for arrays of size zero."""
  return {str(i): leaf for i, leaf in enumerate(leaves) if math.prod(leaf.value.shape)}


def _descriptions(leaves: Sequence[_Leaf]) -> dict[str, str]:
  return {leaf.path: leaf.describe() for leaf in leaves}


def _refuse_other_config(
  folder: pathlib.Path, saved: Any, now: Any, ignore: Collection[str]
) -> None:
  different = {
    name: both
    for name, both in _differences(_flat(saved), _flat(now)).items()
    if not any(name == ignored or name.startswith(f"{ignored}.") for ignored in ignore)
  }
  if different:
    raise CheckpointError(f"{folder} is of another configuration: {_listed(different)}")


def _refuse_other_workers(folder: pathlib.Path, saved: Mapping[str, str], now: Any) -> None:
  """State that differs between workers comes back only to as many workers."""
  for path, node in jax.tree_util.tree_leaves_with_path(now, is_leaf=_is_per_worker):
    prefix = jax.tree_util.keystr(path, simple=True, separator="/")
    for leaf in _leaves(node) if _is_per_worker(node) else ():
      name = f"{prefix}/{leaf.path}" if prefix else leaf.path
      before, after = _shape(saved.get(name, "")), list(leaf.value.shape)
      if before != after and before[1:] == after[1:] and len(before) == len(after):
        raise CheckpointError(
          f"{folder} is of {before[0]} workers, now there are {after[0]}: {name} differs between "
          f"workers and cannot be shared out anew. Go on with {before[0]} workers, or start a "
          "new run"
        )


def _is_per_worker(node: Any) -> bool:
  return isinstance(node, PerWorker)


def _shape(description: str) -> list[int]:
  """The shape in what `_Leaf.describe` says."""
  return [int(size) for size in re.findall(r"\d+", description.partition("[")[2])]


def _refuse_other_leaves(
  folder: pathlib.Path, saved: Mapping[str, str], now: Mapping[str, str]
) -> None:
  different = _differences(saved, now)
  if different:
    raise CheckpointError(f"{folder} is of another state: {_listed(different)}")
  if list(saved) != list(now):
    raise CheckpointError(f"{folder} is of another state: its leaves have another order")


def _differences(saved: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
  def text(values, name):
    return repr(values[name]) if name in values else "nothing"

  both = {name: (text(saved, name), text(now, name)) for name in [*saved, *now]}
  return {name: texts for name, texts in both.items() if texts[0] != texts[1]}


def _listed(different: Mapping[str, tuple[str, str]]) -> str:
  parts = [f"{name}: saved {saved}, now {now}" for name, (saved, now) in different.items()]
  more = f"; and {len(parts) - 5} more" if len(parts) > 5 else ""
  return "; ".join(parts[:5]) + more


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
  """Nested dicts as one, its keys joined by dots."""
  if not (isinstance(tree, dict) and tree):
    return {prefix: tree}
  flat = {}
  for key, value in tree.items():
    flat |= _flat(value, f"{prefix}.{key}" if prefix else key)
  return flat


class _Ranking:
  """The checkpoints' values of one metric, the larger the better."""

  def __init__(self, metric: str | None, mode: str):
    self._metric = metric
    self._sign = 1 if mode == "max" else -1
    self._values: dict[int, float] = {}

  def add(self, step: int, metrics: Mapping[str, float]) -> None:
    value = metrics.get(self._metric) if self._metric else None
    if value is not None and not math.isnan(value):
      self._values[step] = self._sign * value

  def best_first(self, steps: Collection[int]) -> list[int]:
    """Of `steps` those with the metric, the best first; the earlier one where they tie."""
    ranked = [step for step in steps if step in self._values]
    return sorted(ranked, key=lambda step: (-self._values[step], step))


@dataclasses.dataclass(frozen=True)
class _LatestAndBest:
  """Orbax's preservation policy: the latest few and the best."""

  keep: int
  ranking: _Ranking

  def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
    del context
    steps = [checkpoint.step for checkpoint in checkpoints]
    kept = {*sorted(steps)[-self.keep :], *self.ranking.best_first(steps)[:1]}
    return [step in kept for step in steps]


def _damage(folder: pathlib.Path, only: str | None = None) -> str | None:
  """What is wrong with a checkpoint's files (or with `only` one of them); None if nothing."""
  try:
    sums = json.loads((folder / _CHECKSUMS).read_text())
  except (OSError, ValueError):
    return f"{_CHECKSUMS} cannot be read"
  for name in [only] if only else sums:
    try:
      intact = _checksum(folder / name) == sums.get(name)
    except OSError:
      return f"{name} cannot be read"
    if not intact:
      return f"{name} has changed"
  return None


def _waiting_without_devices() -> ocp.options.MultiprocessingOptions:
  """Orbax's threads would else wait for other processes by collectives amid those of a step."""
  several = jax.process_count() > 1
  return ocp.options.MultiprocessingOptions(
    active_processes=set(range(jax.process_count())) if several else None
  )


def _aside(step: int) -> str:
  return f"damaged-{step}"


def _files(folder: pathlib.Path) -> list[str]:
  paths = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
  return sorted(str(path) for path in paths if str(path) not in _REWRITTEN_LATER)


def _checksum(path: pathlib.Path) -> int:
  checksum = 0
  with path.open("rb") as file:
    while block := file.read(1 << 20):
      checksum = zlib.crc32(block, checksum)
  return checksum


@contextlib.contextmanager
def _quiet_orbax() -> Iterator[None]:
  """Keeps Orbax's remarks about its own working off the terminal."""
  logger = logging.getLogger("absl")
  level = logger.level
  logger.setLevel(logging.CRITICAL)
  try:
    yield
  finally:
    logger.setLevel(level)
