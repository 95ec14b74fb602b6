"""Several seeds of one run: in lockstep as one vmapped program, and their summary."""

import contextlib
import os
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .data import Batch
from .metrics import MetricsLog
from .train import Train

_MEMBER = re.compile(r"seed-(\d+)/")


def together(train: Train, seeds: Sequence[int]) -> Train:
  """The functions of a run whose state has a leading axis over members with these seeds.

  `init` ignores the seed that it is given. Scalars come out as the mean over the members,
  by the name that one run gives them, and of each member, as `seed-3/loss`. Training
  batches are stacked, evaluation batches shared. Predictions have the axis over members.
  """

  def init(_seed):
    return jax.vmap(train.init)(jnp.asarray(seeds, jnp.int32))

  def step(states, batches):
    states, metrics = jax.vmap(train.step)(states, batches)
    bad_leaf = jnp.max(metrics.pop("first_bad_leaf"))
    return states, {**_named(metrics, seeds), "first_bad_leaf": bad_leaf}

  def evaluate(states, batch):
    sums = jax.vmap(train.evaluate, in_axes=(0, None))(states, batch)
    examples = sums.pop("examples")[0]
    return {**_named(sums, seeds), "examples": examples}

  def predict(states, batch):
    return jax.vmap(train.predict, in_axes=(0, None))(states, batch)

  return Train(init, step, evaluate, predict)


def stacked(streams: Sequence[Iterator[Batch]]) -> Iterator[Batch]:
  """One batch of each stream at a time, stacked along a new leading axis."""
  for batches in zip(*streams, strict=True):
    yield {name: np.stack([batch[name] for batch in batches]) for name in batches[0]}


def member_of(name: str) -> tuple[int | None, str]:
  """The seed that a metric's name is about (None: the mean), and its name in one run.

  Example:
    >>> member_of("validation/seed-3/accuracy"), member_of("loss")
    ((3, 'validation/accuracy'), (None, 'loss'))
  """
  match = _MEMBER.search(name)
  return (int(match[1]), _MEMBER.sub("", name)) if match else (None, name)


class MemberLogs:
  """A MetricsLog of the means, and one for each member in `seed-<k>/`."""

  def __init__(self, directory: str | os.PathLike[str], seeds: Sequence[int], *, resume_step: int):
    self._files = contextlib.ExitStack()

    def log(folder):
      return self._files.enter_context(MetricsLog(folder, resume_step=resume_step))

    top = pathlib.Path(directory)
    self._logs: dict[int | None, MetricsLog] = {k: log(top / f"seed-{k}") for k in seeds}
    self._logs[None] = log(top)

  def __enter__(self) -> "MemberLogs":
    return self

  def __exit__(self, *_exception: object) -> None:
    self._files.close()

  def write(self, step: int, values: Mapping[str, Any]) -> None:
    """Adds each value to the row of `step` of its member."""
    rows: dict[int | None, dict[str, Any]] = {}
    for name, value in values.items():
      member, own_name = member_of(name)
      rows.setdefault(member, {})[own_name] = value
    for member, row in rows.items():
      self._logs[member].write(step, row)

  def flush(self) -> None:
    """Writes every row so far."""
    for log in self._logs.values():
      log.flush()


def summary(finals: Mapping[int, Mapping[str, float]]) -> dict[str, Any]:
  """Means, sample standard deviations, and the members' own final metrics."""
  names = next(iter(finals.values()))
  values = {name: np.array([final[name] for final in finals.values()]) for name in names}
  return {
    "final": {name: float(x.mean()) for name, x in values.items()},
    "deviation": {name: float(x.std(ddof=min(1, x.size - 1))) for name, x in values.items()},
    "members": {f"seed-{k}": dict(final) for k, final in finals.items()},
  }


def by_member(values: Mapping[str, float]) -> dict[int, dict[str, float]]:
  """The values of each member, by the names of one run; means are left out."""
  members: dict[int, dict[str, float]] = {}
  for name, value in values.items():
    member, own_name = member_of(name)
    if member is not None:
      members.setdefault(member, {})[own_name] = value
  return members


def _named(metrics: Mapping[str, jax.Array], seeds: Sequence[int]) -> dict[str, jax.Array]:
  means = {name: jnp.mean(values) for name, values in metrics.items()}
  own = {
    f"seed-{seed}/{name}": values[i]
    for name, values in metrics.items()
    for i, seed in enumerate(seeds)
  }
  return {**means, **own}
