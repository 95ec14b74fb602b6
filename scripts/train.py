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
from typing import Any, Literal, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jax.sharding import Mesh

from jaxrl import check, data, models, parallel, processes, seeds, spec, train, trouble
from jaxrl.checkpoint import CheckpointError
from jaxrl.fit import Options, Run, Stopped, fit
from jaxrl.metrics import table, write_json
from jaxrl.reduce import AxisName
from jaxrl.trouble import Options as Trouble

MATTERS_NOT = (
  "name",
  "mesh",
  "out",
  "data_dir",
  "download",
  "checkpoint_every",
  "keep",
  "resume",
  "progress",
  "debug",
  "coordinator",
  "num_processes",
  "process_id",
)
"""Fields that change nothing about what is trained: a run goes on under others of them."""


@dataclasses.dataclass(frozen=True)
class Config:
  """Train a Flax model with an objective and an optimizer given as specs.

  A run lives in OUT/NAME: its configuration, metrics, curves, checkpoints and result.
  The same command resumes it where it stopped.
  """

  dataset: str = "digits"
  """A name such as digits or mnist, an .npz file or a folder of images (jaxrl.data.load)."""
  model: str = "cnn"
  """Model: cnn, mlp, resnet, resnet_gn (with GroupNorm), resnet_int4 (whose gradients have four
  bits; by int4_gradients(...)), transformer (of tokens) or vit."""
  features: bool = False
  """Let methods see what the model's last layer sees, as `features`; udim needs it."""
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
  mesh: str | None = None
  """Devices, such as "data=8" or "data=4,fsdp=2"; by default one."""
  gradients: Literal["global", "local"] | None = None
  """Of the whole batch or of each worker; by default local for optimizers with an axis_name."""
  patience: int = 0
  """Stop after so many epochs without a better validation metric; 0 never stops early."""
  seeds: int = 1
  """Runs with the seeds SEED, SEED + 1, ...: a summary, and a folder for each."""
  seed: int = 0
  """Of initialisation, shuffling, dropout and the methods' own randomness."""
  name: str | None = None
  """Of the run; by default made from data set, model and configuration."""
  out: pathlib.Path = pathlib.Path("runs")
  """Folder of all runs."""
  data_dir: pathlib.Path | None = None
  """Folder of prepared data; by default $TFDS_DATA_DIR or a cache of the user's."""
  download: bool = False
  """Let TFDS download and prepare a data set that is not there."""
  trouble: tyro.conf.OmitArgPrefixes[Trouble] = dataclasses.field(default_factory=Trouble)
  """What makes the data harder; nothing by default."""
  checkpoint_every: int = 0
  """Steps between checkpoints; 0 writes one an epoch."""
  keep: int = 3
  """Latest checkpoints to keep; the best one by validation is kept besides."""
  resume: bool = True
  """Go on from the run's last checkpoint; otherwise train anew in another folder."""
  progress: Literal["auto", "bar", "lines", "off"] = "auto"
  """A live bar, a line an epoch, or nothing but the final table; auto: a bar on a terminal."""
  debug: bool = False
  """Show tracebacks of errors in the configuration."""
  coordinator: str | None = None
  """HOST:PORT of process 0 of several, each started by this command; found on clusters."""
  num_processes: int | None = None
  """How many there are."""
  process_id: int | None = None
  """The number of this one, from 0."""


def prepare(config: Config) -> Run:
  """Loads the data, reads the specs and compiles the step.

  Raises:
    ValueError, TypeError: something in the configuration cannot be; says what.
  """
  for name in ("epochs", "seeds"):
    check.whole(name, getattr(config, name), 1)
  for name in ("patience", "checkpoint_every", "seed"):
    check.whole(name, getattr(config, name), 0)
  if config.mesh is None and jax.process_count() > 1:
    raise ValueError(f"{jax.process_count()} processes need a mesh: pass --mesh data=N")
  mesh = None if config.mesh is None else parallel.make_mesh(config.mesh)
  axis_name = worker_axes(config, mesh)
  if mesh is not None and config.batch_size % mesh.size:
    places = f"a multiple of the {mesh.size} places of the mesh"
    raise ValueError(f"batch_size must be {places}, got {config.batch_size}")
  dataset = data.load(config.dataset, config.data_dir, download=config.download)
  dataset = trouble.apply(dataset, config.trouble)
  split, part = dataset.splits["train"], processes.part()
  batch = next(data.batches(split, config.batch_size, seed=config.seed, part=part))
  parts = assemble(config, dataset, batch, axis_name)
  members = _lockstep(config, mesh)
  if members:
    parts = seeds.together(parts, members)
    batch = {name: np.stack([column] * len(members)) for name, column in batch.items()}
  program = parallel.lay_out(parts, mesh, axis_name, config.seed)
  compiled = program.step.lower(program.abstract_state, program.place(batch)).compile()
  fields = {field.name: getattr(config, field.name) for field in dataclasses.fields(Options)}
  return Run(dataset, Options(**fields), program._replace(step=compiled), members)


def assemble(
  config: Config, dataset: data.Dataset, batch: data.Batch, axis_name: AxisName | None
) -> train.Train:
  """The pure functions that the configuration's specs stand for."""
  steps_per_epoch = data.steps_per_epoch(dataset.splits["train"], config.batch_size)
  names = {
    "num_examples": dataset.num_examples,
    "num_classes": dataset.num_classes,
    "num_groups": dataset.num_groups,
    "steps": config.epochs * steps_per_epoch,
    "epochs": config.epochs,
  }
  names = {name: value for name, value in names.items() if value is not None}
  outputs = dataset.num_classes or batch["targets"].shape[-1]
  needed = models.OPTIMIZERS.get(config.model, "")
  if needed not in config.optimizer:
    raise ValueError(f"model {config.model} trains by {needed}(...), got {config.optimizer!r}")
  return train.make_train(
    models.make(config.model, outputs, show_features=config.features),
    spec.objective(config.objective, **names),
    spec.optimizer(config.optimizer, **names),
    jnp.asarray(batch["inputs"][:1]),
    steps_per_epoch=steps_per_epoch,
    micro_batches=config.micro_batches,
    compute_dtype=jnp.dtype(config.precision),
    axis_name=axis_name,
  )


def _seeds(config: Config) -> tuple[int, ...]:
  return tuple(range(config.seed, config.seed + config.seeds))


def _lockstep(config: Config, mesh: Mesh | None) -> tuple[int, ...]:
  """The seeds to run as one vmapped program; none where one after the other is better.

  A CPU runs the convolutions of several members far slower than one after the other, and
  members that may stop early have different lengths.
  """
  slow = config.model in models.CONVOLUTIONAL and jax.default_backend() == "cpu"
  if config.seeds == 1 or slow or mesh is not None or config.patience:
    return ()
  return _seeds(config)


def worker_axes(config: Config, mesh: Mesh | None) -> AxisName | None:
  """The mesh axes of workers with local gradients; None for global gradients."""
  axes = spec.axis_names(config.optimizer)
  named = f"axis_name={', '.join(sorted(axes))}"
  if axes and config.gradients == "global":
    raise ValueError(f"{named} in the optimizer needs gradients local, got global")
  if not axes and config.gradients == "local":
    raise ValueError("gradients must be global where nothing in the optimizer has an axis_name")
  if not axes:
    return None
  if mesh is None or not axes <= set(mesh.axis_names):
    raise ValueError(f"{named} must be an axis of the mesh: pass --mesh data=N")
  return tuple(name for name in mesh.axis_names if name in axes)


def _as_json(config: Config) -> dict[str, Any]:
  values = dataclasses.asdict(config)
  # Runs from before there were these fields can be gone on with.
  if config.trouble == Trouble():
    del values["trouble"]
  if not config.features:
    del values["features"]
  return {k: str(v) if isinstance(v, pathlib.Path) else v for k, v in values.items()}


def _directory(config: Config) -> pathlib.Path:
  """The run's folder: by name, or named after what matters in the configuration."""
  matters = {k: v for k, v in _as_json(config).items() if k not in MATTERS_NOT}
  digest = hashlib.sha1(json.dumps(matters, sort_keys=True).encode()).hexdigest()[:8]
  dataset = "-".join(pathlib.Path(config.dataset).parts[-2:]).removesuffix(".npz")
  base = config.out / (config.name or f"{dataset}-{config.model}-{digest}")
  if config.resume:
    return base
  candidates = itertools.chain(
    [base], (base.with_name(f"{base.name}-{i}") for i in itertools.count(2))
  )
  return pathlib.Path(
    processes.of_first(lambda: str(next(path for path in candidates if not path.exists())))
  )


def _one_after_the_other(config: Config, run: Run, directory: pathlib.Path) -> dict[str, Any]:
  """A run for each seed, all by one compiled step, and their summary."""
  results = {}
  for seed in _seeds(config):
    member = dataclasses.replace(config, seed=seed, seeds=1)
    seeded = run._replace(options=dataclasses.replace(run.options, seed=seed))
    folder = directory / f"seed-{seed}"
    results[seed] = fit(seeded, folder, _as_json(member), ignore=MATTERS_NOT)
  first = next(iter(results.values()))
  result = {
    **{name: first[name] for name in ("parameters", "optimizer_bytes_per_parameter")},
    **seeds.summary({seed: result["final"] for seed, result in results.items()}),
    "steps": sum(result["steps"] for result in results.values()),
    "seconds": sum(result["seconds"] for result in results.values()),
  }
  result["examples_per_second"] = result["steps"] * config.batch_size / result["seconds"]
  if processes.is_first():
    write_json(directory / "result.json", result)
  return result


def _final_table(run: Run, result: dict[str, Any], directory: pathlib.Path) -> str:
  final, deviation = result["final"], result.get("deviation")
  names = [name.partition("/")[2] for name in final if name.startswith("test/")]
  rows = [[split, *(final[f"{split}/{name}"] for name in names)] for split in data.SPLITS]
  if deviation:
    rows += [["test deviation", *(deviation[f"test/{name}"] for name in names)]]
  lines = [table([f"mean of {len(result['members'])}" if deviation else "final", *names], rows)]
  if "best" in result:
    best = result["best"]
    lines += [f"best {run.ranking} {best[run.ranking]:.4g} in epoch {best['epoch']}"]
  lines += [
    f"{result['steps']} steps in {result['seconds']:.1f} s, "
    f"{result['examples_per_second']:.0f} examples/s, {result['parameters']} parameters, "
    f"{result['optimizer_bytes_per_parameter']:.2f} optimizer bytes a parameter",
    f"written to {directory}",
  ]
  return "\n".join(lines)


def main() -> None:
  """The command line."""
  config = tyro.cli(Config, prog="python -m scripts.train")
  try:
    processes.start(config.coordinator, config.num_processes, config.process_id)
    run = prepare(config)
  except (ValueError, TypeError) as error:
    if config.debug:
      raise
    _leave(2, error)
  try:
    directory = _directory(config)
    if config.seeds > 1 and not run.members:
      result = _one_after_the_other(config, run, directory)
    else:
      result = fit(run, directory, _as_json(config), ignore=MATTERS_NOT)
  except CheckpointError as error:
    _leave(2, error)
  except FloatingPointError as error:
    _leave(1, error)
  except Stopped as error:
    _leave(143, error)
  except jax.errors.JaxRuntimeError as error:
    processes.leave_if_lost(error)
    raise
  if processes.is_first():
    print(_final_table(run, result, directory))


def _leave(code: int, error: Exception) -> NoReturn:
  print("error: " + " ".join(str(error).split()), file=sys.stderr)
  sys.exit(code)


if __name__ == "__main__":
  main()
