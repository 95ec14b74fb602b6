"""Arms that train a network: a configuration of `scripts.train`, measured over vmapped seeds."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl import data, models, plots, seeds, train, trouble
from jaxrl.predictions import Predictions, joined
from scripts.evidence._experiment import Arm, Measure
from scripts.train import Config, assemble

_EVALUATION_BATCH = 512


class Trained(NamedTuple):
  """One trained network.

  Attributes:
    config: of its run.
    state: at the end.
    predictions: on each split, with columns as `jaxrl.predictions` has them.
    dataset: what it was trained on.
    parts: the functions of its run.
  """

  config: Config
  state: train.TrainState
  predictions: dict[str, Predictions]
  dataset: data.Dataset
  parts: train.Train


Statistics: TypeAlias = Callable[[Trained], dict[str, float]]
Change: TypeAlias = Callable[[data.Dataset], data.Dataset]


def no_statistics(_trained: Trained) -> dict[str, float]:
  """Nothing beyond what is measured of every network."""
  return {}


def no_change(dataset: data.Dataset) -> data.Dataset:
  """The data set as it is."""
  return dataset


def trained(
  config: Config,
  statistics: Statistics = no_statistics,
  change: Change = no_change,
) -> Measure:
  """Trains by a configuration of the command line, as many seeds in lockstep as is fast.

  Args:
    config: its `seed` and all that concerns files is left out.
    statistics: of one trained network, besides `validation/accuracy`, `test/nll` and all
      else that `jaxrl.plots.numbers` knows.
    change: of the data set, beyond what the configuration's trouble does to it.

  Returns:
    A function from seeds to those numbers, `[seeds]`, and the mean loss of each epoch,
    `curve/loss [seeds, epochs]`.
  """

  @functools.cache
  def functions():
    dataset = change(trouble.apply(data.load(config.dataset, config.data_dir), config.trouble))
    batch = next(data.batches(dataset.splits["train"], config.batch_size, seed=0))
    parts = assemble(config, dataset, batch, axis_name=None)
    return dataset, parts, _Compiled(parts)

  def measure(members: Sequence[int]) -> dict[str, np.ndarray]:
    if config.model in models.CONVOLUTIONAL:  # one after the other is faster on a CPU
      each = [together((member,)) for member in members]
      return {name: np.concatenate([own[name] for own in each]) for name in each[0]}
    return together(members)

  def together(members: Sequence[int]) -> dict[str, np.ndarray]:
    dataset, parts, compiled = functions()
    states, losses = _train(config, dataset, compiled, members)
    predictions = {
      split: _predictions(compiled, states, dataset.splits[split]) for split in data.SPLITS
    }
    numbers = []
    for i in range(len(members)):
      own, state = jax.tree.map(lambda x, i=i: x[i], (predictions, states))
      numbers.append(_numbers(Trained(config, state, own, dataset, parts), statistics))
    values = {name: np.array([own[name] for own in numbers]) for name in numbers[0]}
    return {**values, "curve/loss": losses}

  return measure


class _Compiled:
  """The functions of a run over a leading axis of members."""

  def __init__(self, parts: train.Train):
    self._init = jax.vmap(parts.init)
    self.step = jax.jit(jax.vmap(parts.step), donate_argnums=0)
    self.predict = jax.jit(jax.vmap(parts.predict, in_axes=(0, None)))

  def init(self, members: jax.Array) -> train.TrainState:
    """The states at the start.

    Operation by operation: these are compiled once for all settings, while the whole would be
    compiled for each of them, which takes longer than all else. The step is donated copies,
    since states may hold the parameters twice.
    """
    return jax.tree.map(jnp.copy, self._init(members))


def _train(
  config: Config, dataset: data.Dataset, compiled: _Compiled, members: Sequence[int]
) -> tuple[Any, np.ndarray]:
  """The members' states at the end, and the mean loss of each of their epochs."""
  split = dataset.splits["train"]
  steps = data.steps_per_epoch(split, config.batch_size)
  streams = [data.batches(split, config.batch_size, seed=seed) for seed in members]
  batches = seeds.stacked(streams)
  states = compiled.init(jnp.asarray(members, jnp.int32))
  losses = []
  for _ in range(config.epochs):
    total = 0.0
    for _ in range(steps):
      states, metrics = compiled.step(states, next(batches))
      total = total + metrics["loss"]
    losses.append(np.asarray(total) / steps)
  return states, np.stack(losses, axis=1)


def _predictions(compiled: _Compiled, states: Any, split: data.Split) -> Predictions:
  batches = data.eval_batches(split, _EVALUATION_BATCH)
  return joined([compiled.predict(states, batch) for batch in batches], axis=1)


def _numbers(member: Trained, statistics: Statistics) -> dict[str, float]:
  values = {
    f"{split}/{name}": value
    for split in ("validation", "test")
    for name, value in plots.numbers(member.predictions[split]).items()
  }
  return {**values, **statistics(member)}


def grid(
  config: Config,
  statistics: Statistics = no_statistics,
  change: Change = no_change,
  **options: Sequence[Any],
) -> Arm:
  """An arm with a setting for each combination of the options of a configuration.

  Example:
    >>> sorted(grid(Config(model="mlp"), optimizer=["sgd(0.1)", "sgd(0.2)"], epochs=[5]))
    ['sgd(0.1), epochs=5', 'sgd(0.2), epochs=5']
  """
  arm = {}
  for values in itertools.product(*options.values()):
    chosen = dict(zip(options, values, strict=True))
    arm[_setting(chosen)] = trained(dataclasses.replace(config, **chosen), statistics, change)
  return arm


def _setting(chosen: Mapping[str, Any]) -> str:
  """Specs speak for themselves; other options need their names."""
  return ", ".join(v if isinstance(v, str) else f"{name}={v}" for name, v in chosen.items())
