"""Finished runs, rebuilt from their configuration and their last checkpoint."""

import json
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from jaxrl import data, parallel, seeds, spec, trouble
from jaxrl import train as training
from jaxrl.checkpoint import Checkpoints
from scripts import train


class Trained(NamedTuple):
  """A finished run at rest.

  Attributes:
    dataset: what it was trained on.
    parts: its pure functions, in float32.
    state: the final state, whose `params` are those that the run evaluates.
    initial: the parameters that it began with.
    place: puts a batch on the devices.
    places: the number of parts in which a batch is cut.
  """

  dataset: data.Dataset
  parts: training.Train
  state: training.TrainState
  initial: Any
  place: Callable[[Any], Any]
  places: int


def load(folder: pathlib.Path) -> Trained:
  """The run in a folder, from its configuration and its last checkpoint.

  Raises:
    ValueError: there is no finished run, or it cannot be rebuilt here; says why.
  """
  home, member = _home(folder)
  saved = _read(home / "config.json")
  config = _config(saved, home)
  dataset = data.load(config.dataset, config.data_dir)
  dataset = trouble.apply(dataset, config.trouble)
  batch = next(data.batches(dataset.splits["train"], config.batch_size, seed=config.seed))
  mesh = _mesh(config)
  axis_name = train.worker_axes(config, mesh)
  parts = train.assemble(config, dataset, batch, axis_name)
  members = tuple(range(config.seed, config.seed + config.seeds))
  whole = parts if member is None else seeds.together(parts, members)
  program = parallel.lay_out(whole, mesh, axis_name, config.seed)
  checkpoints = Checkpoints(home / "checkpoints", saved, keep=config.keep, ignore=train.MATTERS_NOT)
  with checkpoints:
    restored = checkpoints.restore_latest(program.abstract_state)
  if restored is None:
    raise ValueError(f"{home} has no checkpoint")
  states = restored.state, program.init(config.seed)
  if member is not None:
    states = jax.tree.map(lambda x: x[members.index(member)], states)
  final, first = states
  params = training.eval_params(final.optimizer, final.params)
  state = final._replace(params=params, optimizer=())
  return Trained(dataset, parts, state, first.params, program.place, program.places)


def _home(folder: pathlib.Path) -> tuple[pathlib.Path, int | None]:
  """The folder with configuration and checkpoints, and the member's seed if it has several."""
  members = sorted(path.name for path in folder.glob("seed-*") if path.is_dir())
  if members:
    named = folder / members[0]
    raise ValueError(f"{folder} has {len(members)} members: name one, such as {named}")
  home, member = folder, None
  lockstep = not (folder / "config.json").exists() and (folder.parent / "config.json").exists()
  if lockstep and folder.is_dir() and folder.name.startswith("seed-"):
    home, member = folder.parent, int(folder.name.removeprefix("seed-"))
  if not (home / "config.json").exists():
    raise ValueError(f"{folder} is no run: it has no config.json")
  if not (home / "result.json").exists():
    raise ValueError(f"{folder} has not finished: it has no result.json")
  return home, member


def _read(path: pathlib.Path) -> dict[str, Any]:
  try:
    return json.loads(path.read_text())
  except json.JSONDecodeError as error:
    raise ValueError(f"{path} is damaged: {error}") from error


def _config(saved: dict[str, Any], home: pathlib.Path) -> train.Config:
  """The configuration that JSON stands for, in float32: bf16 would blur the curvature."""
  values = {**saved, "precision": "float32"}
  if values.get("data_dir"):
    values["data_dir"] = pathlib.Path(values["data_dir"])
  values["trouble"] = trouble.Options(**values.get("trouble", {}))
  try:
    return train.Config(**values)
  except TypeError as error:
    raise ValueError(f"{home / 'config.json'} is of another version: {error}") from error


def _mesh(config: train.Config) -> Mesh | None:
  """The run's mesh; none where it needs none and there are not as many devices."""
  if config.mesh is None:
    return None
  try:
    return parallel.make_mesh(config.mesh)
  except ValueError as error:
    if spec.axis_names(config.optimizer):
      raise ValueError(f"this run's state belongs to its workers: {error}") from error
    return None
