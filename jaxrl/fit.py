"""The loop over steps: data in, logs and checkpoints out, from wherever a run was left."""

import dataclasses
import math
import pathlib
import time
from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from . import data, predictions, processes, seeds, train
from .checkpoint import Checkpoints, stop_on_signals
from .metrics import MetricsLog, NoLog, Progress, plot_curves, write_json
from .parallel import Program

_EVALUATION_BATCH = 512


class Stopped(Exception):
  """A signal ended the run; its message says how to go on."""


@dataclasses.dataclass(frozen=True)
class Options:
  """What the loop itself needs to know of a configuration.

  Attributes:
    epochs: passes over the training split.
    batch_size: examples a step, over all devices.
    seed: of the run.
    patience: epochs without a better validation metric after which to stop; 0 never stops.
    checkpoint_every: steps between checkpoints; 0 writes one an epoch.
    keep: latest checkpoints to keep; the best one is kept besides.
    progress: what `jaxrl.metrics.Progress` shows.
  """

  epochs: int
  batch_size: int
  seed: int
  patience: int
  checkpoint_every: int
  keep: int
  progress: str


class Run(NamedTuple):
  """What a configuration stands for: the data, the loop's options, the compiled program.

  `members` are the seeds of a program that runs several in lockstep (`jaxrl.seeds`).
  """

  dataset: data.Dataset
  options: Options
  program: Program
  members: tuple[int, ...] = ()

  @property
  def metric(self) -> str:
    """The metric by which epochs are compared."""
    return "accuracy" if self.dataset.num_classes else "squared_error"

  @property
  def ranking(self) -> str:
    """The logged name of that metric."""
    return f"validation/{self.metric}"

  @property
  def higher_is_better(self) -> bool:
    """Whether more of the metric is better."""
    return self.metric == "accuracy"

  @property
  def steps_per_epoch(self) -> int:
    """Full batches in one pass over the training split."""
    return data.steps_per_epoch(self.dataset.splits["train"], self.options.batch_size)

  @property
  def steps(self) -> int:
    """The length of the whole run."""
    return self.options.epochs * self.steps_per_epoch


class History(NamedTuple):
  """What the loop itself must remember over a restart."""

  seconds: float = 0.0
  epochs: int = 0
  best: float | None = None
  best_epoch: int = 0

  def after_epoch(self, value: float, higher_is_better: bool) -> "History":
    """With the validation metric of one more epoch."""
    after = self._replace(epochs=self.epochs + 1)
    better = self.best is None or (value > self.best if higher_is_better else value < self.best)
    return after._replace(best=value, best_epoch=after.epochs) if better else after


def fit(
  run: Run, directory: pathlib.Path, config: Mapping[str, Any], ignore: Collection[str] = ()
) -> dict[str, Any]:
  """Trains to the end of the run, or to a signal; writes everything under `directory`.

  Args:
    run: what to train.
    directory: of the run. What an earlier process left there is gone on with.
    config: the whole configuration, written down and compared with that of checkpoints.
    ignore: its fields that may differ from those of a checkpoint.

  Returns:
    What `result.json` holds.

  Raises:
    CheckpointError: the folder's checkpoints cannot be used for this configuration.
    FloatingPointError: a parameter is not finite; names step and leaf.
    Stopped: a signal came; the state is saved.
  """
  checkpoints = Checkpoints(
    directory / "checkpoints",
    config,
    keep=run.options.keep,
    best_metric=run.ranking,
    best_mode="max" if run.higher_is_better else "min",
    ignore=ignore,
  )
  with checkpoints:
    restored = checkpoints.restore_latest(run.program.abstract_state)
    state = restored.state if restored else run.program.init(run.options.seed)
    history = History(**restored.extra) if restored else History()
    start = restored.step if restored else 0
    writes = processes.is_first()
    if writes:
      write_json(directory / "config.json", config)
    log = _log(run, directory, start) if writes else NoLog()
    show = run.options.progress if writes else "off"
    progress = Progress(run.steps, run.options.batch_size, start_step=start, show=show)
    with log, progress:
      for note in restored.notes if restored and writes else ():
        progress.say(note)
      if writes and start == run.steps:
        progress.say(f"{directory} is complete: nothing is left to train")
      state, history = _steps(run, start, state, history, checkpoints, log, progress)
  result = _result(run, state, history)
  if run.dataset.num_classes and not run.dataset.of_tokens:
    _write_predictions(run, state, directory)
  if writes:
    write_json(directory / "result.json", result)
    plot_curves(directory / "metrics.csv", directory / "curves.png")
  return result


def _log(run: Run, directory: pathlib.Path, start: int) -> MetricsLog | seeds.MemberLogs:
  if run.members:
    return seeds.MemberLogs(directory, run.members, resume_step=start)
  return MetricsLog(directory, resume_step=start)


def _batches(run: Run, start: int) -> Iterator[data.Batch]:
  def stream(seed):
    split = run.dataset.splits["train"]
    part = processes.part()
    return data.batches(split, run.options.batch_size, seed=seed, start_step=start, part=part)

  if run.members:
    return seeds.stacked([stream(seed) for seed in run.members])
  return stream(run.options.seed)


def _steps(
  run: Run,
  step: int,
  state: train.TrainState,
  history: History,
  checkpoints: Checkpoints,
  log: MetricsLog | seeds.MemberLogs,
  progress: Progress,
) -> tuple[train.TrainState, History]:
  """The loop over steps, from wherever `state` is."""
  options, program, bad_leaf, asked = run.options, run.program, -1, False
  every = options.checkpoint_every or run.steps_per_epoch
  batches = _batches(run, step)
  clock = _Clock(history.seconds)
  with stop_on_signals() as stop:
    while step < run.steps and not _out_of_patience(options, history):
      # One step late, so that the device never waits for the host.
      _check_finite(state.params, bad_leaf, step)
      stopping = bool(asked)
      state, metrics = program.step(state, program.place(next(batches)))
      asked = processes.on_any(stop.requested)
      step += 1
      bad_leaf = metrics.pop("first_bad_leaf")
      log.write(step, metrics)
      progress.step(metrics)
      validation = {}
      if step % run.steps_per_epoch == 0:
        validation = _evaluated(run, state, "validation")
        history = history.after_epoch(validation[run.ranking], run.higher_is_better)
        log.write(step, validation)
        progress.epoch(history.epochs, options.epochs, {"loss": metrics["loss"], **validation})
      if step % every == 0 or step == run.steps or stopping:
        _check_finite(state.params, bad_leaf, step)
        log.flush()
        history = history._replace(seconds=clock.seconds())
        checkpoints.save(step, state, validation, history._asdict())
      if stopping:
        checkpoints.wait()
        why = stop.signal or "another process was stopped"
        raise Stopped(f"{why}: step {step} is saved; the same command goes on from there")
  return state, history


class _Clock:
  """Seconds of training, those of earlier processes included."""

  def __init__(self, before: float):
    self._start = time.perf_counter() - before

  def seconds(self) -> float:
    return time.perf_counter() - self._start


def _out_of_patience(options: Options, history: History) -> bool:
  return 0 < options.patience <= history.epochs - history.best_epoch


def _check_finite(params: Any, first_bad_leaf: jax.Array | int, step: int) -> None:
  if int(first_bad_leaf) >= 0:
    leaf = train.bad_leaf_name(params, int(first_bad_leaf))
    raise FloatingPointError(f"parameter {leaf} is not finite after step {step}")


def _evaluated(run: Run, state: train.TrainState, split: str) -> dict[str, float]:
  batches = _evaluation_batches(run, split)
  means = train.mean_metrics([run.program.evaluate(state, batch) for batch in batches])
  return {f"{split}/{name}": value for name, value in means.items()}


def _evaluation_batches(run: Run, split: str) -> Iterator[Mapping[str, Any]]:
  program = run.program
  size = -(-_EVALUATION_BATCH // program.places) * program.places
  batches = data.eval_batches(run.dataset.splits[split], size, part=processes.part())
  return map(program.place, batches)


def _write_predictions(run: Run, state: train.TrainState, directory: pathlib.Path) -> None:
  """The final predictions, of each member in its own folder."""
  axis, splits = int(bool(run.members)), {}
  for split in predictions.SPLITS:
    batches = _evaluation_batches(run, split)
    splits[split] = predictions.joined([run.program.predict(state, b) for b in batches], axis)
  if not processes.is_first():
    return
  if not run.members:
    predictions.write(directory, splits)
  for i, seed in enumerate(run.members):
    predictions.write(directory / f"seed-{seed}", jax.tree.map(lambda x, i=i: x[i], splits))


def _result(run: Run, state: train.TrainState, history: History) -> dict[str, Any]:
  members = max(1, len(run.members))
  steps = int(jnp.max(state.step))
  parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params)) // members
  optimizer_bytes = sum(map(_bytes_on_one_device, jax.tree.leaves(state.optimizer))) / members
  final = {}
  for split in data.SPLITS:
    final |= _evaluated(run, state, split)
  return {
    **(seeds.summary(seeds.by_member(final)) if run.members else {"final": final}),
    "best": {"epoch": history.best_epoch, run.ranking: history.best},
    "steps": steps,
    "seconds": history.seconds,
    "examples_per_second": members * steps * run.options.batch_size / history.seconds,
    "parameters": parameters,
    "optimizer_bytes_per_parameter": optimizer_bytes / parameters,
  }


def _bytes_on_one_device(leaf: jax.Array) -> int:
  return math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
