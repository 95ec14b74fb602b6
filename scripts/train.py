"""Trains a Flax model on a data set with an objective and an optimizer given as specs.

python -m scripts.train --dataset digits --model cnn --objective "cross_entropy()" \
  --optimizer "sam(rho=0.05) | adamw(1e-3)" --epochs 20
"""

import dataclasses
import hashlib
import itertools
import json
import pathlib
import sys
import time
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, NoReturn

import jax
import jax.numpy as jnp
import tyro

from jaxrl import check, data, models, spec, train
from jaxrl.checkpoint import CheckpointError, Checkpoints, stop_on_signals
from jaxrl.metrics import MetricsLog, Progress, plot_curves, table, write_json

_EVALUATION_BATCH = 512
_MATTERS_NOT = (
  "name",
  "out",
  "data_dir",
  "checkpoint_every",
  "keep",
  "resume",
  "progress",
  "debug",
)


@dataclasses.dataclass(frozen=True)
class Config:
  """Train a Flax model with an objective and an optimizer given as specs.

  A run lives in OUT/NAME: its configuration, metrics, curves, checkpoints and result.
  The same command resumes it where it stopped.
  """

  dataset: str = "digits"
  """Data set: digits or diabetes."""
  model: str = "cnn"
  """Model: cnn or mlp."""
  objective: str = "cross_entropy()"
  """What is minimised, such as "mixup() | cross_entropy()" or "elr() | group_dro()"."""
  optimizer: str = "sam(rho=0.05) | adamw(1e-3)"
  """How; "steps" and "epochs" stand for the run's length in schedules."""
  epochs: int = 20
  """Passes over the training split."""
  batch_size: int = 64
  """Examples a step; the remainder of an epoch is left out."""
  micro_batches: int = 1
  """Parts in which a batch goes through the model, to save memory."""
  precision: Literal["float32", "bfloat16"] = "float32"
  """Of the forward and backward pass; parameters and optimizer stay float32."""
  patience: int = 0
  """Stop after so many epochs without a better validation metric; 0 never stops early."""
  seed: int = 0
  """Of initialisation, shuffling, dropout and the methods' own randomness."""
  name: str | None = None
  """Of the run; by default made from data set, model and configuration."""
  out: pathlib.Path = pathlib.Path("runs")
  """Folder of all runs."""
  data_dir: pathlib.Path | None = None
  """Folder of prepared data; by default $TFDS_DATA_DIR or a cache of the user's."""
  checkpoint_every: int = 0
  """Steps between checkpoints; 0 writes one an epoch."""
  keep: int = 3
  """Latest checkpoints to keep; the best one by validation is kept besides."""
  resume: bool = True
  """Go on from the run's last checkpoint; otherwise a new folder is taken."""
  progress: Literal["auto", "bar", "lines", "off"] = "auto"
  """A live bar, a line an epoch, or nothing but the final table; auto: a bar on a terminal."""
  debug: bool = False
  """Show tracebacks of errors in the configuration."""


class Run(NamedTuple):
  """What a configuration stands for, compiled and ready."""

  config: Config
  dataset: data.Dataset
  steps_per_epoch: int
  init: Callable[[int], train.TrainState]
  step: Callable[..., tuple[train.TrainState, dict[str, jax.Array]]]
  evaluate: Callable[..., dict[str, jax.Array]]

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
  def steps(self) -> int:
    """The length of the whole run."""
    return self.config.epochs * self.steps_per_epoch


def prepare(config: Config) -> Run:
  """Loads the data, reads the specs and compiles the step.

  Raises:
    ValueError, TypeError: something in the configuration cannot be; says what.
  """
  check.whole("epochs", config.epochs, 1)
  check.whole("patience", config.patience, 0)
  check.whole("checkpoint_every", config.checkpoint_every, 0)
  dataset = data.load(config.dataset, config.data_dir)
  split = dataset.splits["train"]
  steps_per_epoch = data.steps_per_epoch(split, config.batch_size)
  names = {
    "num_examples": dataset.num_examples,
    "num_classes": dataset.num_classes,
    "num_groups": dataset.num_groups,
    "steps": config.epochs * steps_per_epoch,
    "epochs": config.epochs,
  }
  names = {name: value for name, value in names.items() if value is not None}
  batch = next(data.batches(split, config.batch_size, seed=config.seed))
  outputs = dataset.num_classes or batch["targets"].shape[-1]
  parts = train.make_train(
    models.make(config.model, outputs),
    spec.objective(config.objective, **names),
    spec.optimizer(config.optimizer, **names),
    jnp.asarray(batch["inputs"][:1]),
    steps_per_epoch=steps_per_epoch,
    micro_batches=config.micro_batches,
    compute_dtype=jnp.dtype(config.precision),
  )
  init = jax.jit(parts.init)
  step = jax.jit(parts.step, donate_argnums=0)
  compiled = step.lower(jax.eval_shape(init, config.seed), batch).compile()
  return Run(config, dataset, steps_per_epoch, init, compiled, jax.jit(parts.evaluate))


def fit(run: Run, directory: pathlib.Path) -> dict[str, Any]:
  """Trains to the end of the run, or to a signal; writes everything under `directory`.

  Returns:
    What `result.json` holds.

  Raises:
    CheckpointError: the folder's checkpoints cannot be used for this configuration.
    FloatingPointError: a parameter is not finite; names step and leaf.
    Stopped: a signal came; the state is saved.
  """
  config = run.config
  checkpoints = Checkpoints(
    directory / "checkpoints",
    _as_json(config),
    keep=config.keep,
    best_metric=run.ranking,
    best_mode="max" if run.higher_is_better else "min",
    ignore=_MATTERS_NOT,
  )
  with checkpoints:
    restored = checkpoints.restore_latest(jax.eval_shape(run.init, config.seed))
    state = restored.state if restored else run.init(config.seed)
    history = History(**restored.extra) if restored else History()
    start = restored.step if restored else 0
    write_json(directory / "config.json", _as_json(config))
    log = MetricsLog(directory, resume_step=start)
    progress = Progress(run.steps, config.batch_size, start_step=start, show=config.progress)
    with log, progress:
      for note in restored.notes if restored else ():
        progress.say(note)
      state, history = _steps(run, state, history, checkpoints, log, progress)
  result = _result(run, state, history)
  write_json(directory / "result.json", result)
  plot_curves(directory / "metrics.csv", directory / "curves.png")
  return result


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


class Stopped(Exception):
  """A signal ended the run; its message says how to go on."""


def _steps(
  run: Run,
  state: train.TrainState,
  history: History,
  checkpoints: Checkpoints,
  log: MetricsLog,
  progress: Progress,
) -> tuple[train.TrainState, History]:
  """The loop over steps, from wherever `state` is."""
  config, step, bad_leaf = run.config, int(state.step), -1
  every = config.checkpoint_every or run.steps_per_epoch
  split = run.dataset.splits["train"]
  batches = data.batches(split, config.batch_size, seed=config.seed, start_step=step)
  clock = _Clock(history.seconds)
  with stop_on_signals() as stop:
    while step < run.steps and not _out_of_patience(config, history):
      # One step late, so that the device never waits for the host.
      _check_finite(state.params, bad_leaf, step)
      state, metrics = run.step(state, next(batches))
      step += 1
      bad_leaf = metrics.pop("first_bad_leaf")
      log.write(step, metrics)
      progress.step(metrics)
      validation = {}
      if step % run.steps_per_epoch == 0:
        validation = _evaluated(run, state, "validation")
        history = history.after_epoch(validation[run.ranking], run.higher_is_better)
        log.write(step, validation)
        progress.epoch(history.epochs, config.epochs, {"loss": metrics["loss"], **validation})
      if step % every == 0 or step == run.steps or stop.requested:
        _check_finite(state.params, bad_leaf, step)
        log.flush()
        history = history._replace(seconds=clock.seconds())
        checkpoints.save(step, state, validation, history._asdict())
      if stop.requested:
        checkpoints.wait()
        raise Stopped(f"{stop.signal}: step {step} is saved; the same command goes on from there")
  return state, history


class _Clock:
  """Seconds of training, those of earlier processes included."""

  def __init__(self, before: float):
    self._start = time.perf_counter() - before

  def seconds(self) -> float:
    return time.perf_counter() - self._start


def _out_of_patience(config: Config, history: History) -> bool:
  return 0 < config.patience <= history.epochs - history.best_epoch


def _check_finite(params: Any, first_bad_leaf: jax.Array | int, step: int) -> None:
  if int(first_bad_leaf) >= 0:
    leaf = train.bad_leaf_name(params, int(first_bad_leaf))
    raise FloatingPointError(f"parameter {leaf} is not finite after step {step}")


def _evaluated(run: Run, state: train.TrainState, split: str) -> dict[str, float]:
  batches = data.eval_batches(run.dataset.splits[split], _EVALUATION_BATCH)
  means = train.mean_metrics([run.evaluate(state, batch) for batch in batches])
  return {f"{split}/{name}": value for name, value in means.items()}


def _result(run: Run, state: train.TrainState, history: History) -> dict[str, Any]:
  steps = int(state.step)
  parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
  optimizer_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(state.optimizer))
  examples = steps * run.config.batch_size
  return {
    "final": {
      **_evaluated(run, state, "train"),
      **_evaluated(run, state, "validation"),
      **_evaluated(run, state, "test"),
    },
    "best": {"epoch": history.best_epoch, run.ranking: history.best},
    "steps": steps,
    "seconds": history.seconds,
    "examples_per_second": examples / history.seconds,
    "parameters": parameters,
    "optimizer_bytes_per_parameter": optimizer_bytes / parameters,
  }


def _as_json(config: Config) -> dict[str, Any]:
  values = dataclasses.asdict(config)
  return {k: str(v) if isinstance(v, pathlib.Path) else v for k, v in values.items()}


def _directory(config: Config) -> pathlib.Path:
  """The run's folder: by name, or named after what matters in the configuration."""
  matters = {k: v for k, v in _as_json(config).items() if k not in _MATTERS_NOT}
  digest = hashlib.sha1(json.dumps(matters, sort_keys=True).encode()).hexdigest()[:8]
  base = config.out / (config.name or f"{config.dataset}-{config.model}-{digest}")
  if config.resume:
    return base
  candidates = itertools.chain(
    [base], (base.with_name(f"{base.name}-{i}") for i in itertools.count(2))
  )
  return next(path for path in candidates if not path.exists())


def _final_table(run: Run, result: dict[str, Any], directory: pathlib.Path) -> str:
  final = result["final"]
  names = [name.partition("/")[2] for name in final if name.startswith("test/")]
  rows = [[split, *(final[f"{split}/{name}"] for name in names)] for split in data.SPLITS]
  best = result["best"]
  return "\n".join(
    [
      table(["final", *names], rows),
      f"best {run.ranking} {best[run.ranking]:.4g} in epoch {best['epoch']}",
      f"{result['steps']} steps in {result['seconds']:.1f} s, "
      f"{result['examples_per_second']:.0f} examples/s, {result['parameters']} parameters, "
      f"{result['optimizer_bytes_per_parameter']:.2f} optimizer bytes a parameter",
      f"written to {directory}",
    ]
  )


def main() -> None:
  """The command line."""
  config = tyro.cli(Config, prog="python -m scripts.train")
  try:
    run = prepare(config)
  except (ValueError, TypeError) as error:
    if config.debug:
      raise
    _leave(2, error)
  directory = _directory(config)
  try:
    result = fit(run, directory)
  except CheckpointError as error:
    _leave(2, error)
  except FloatingPointError as error:
    _leave(1, error)
  except Stopped as error:
    _leave(143, error)
  print(_final_table(run, result, directory))


def _leave(code: int, error: Exception) -> NoReturn:
  print("error: " + " ".join(str(error).split()), file=sys.stderr)
  sys.exit(code)


if __name__ == "__main__":
  main()
