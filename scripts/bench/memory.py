"""The bytes that optimizers keep of the small transformer and the CNN, and the step's memory."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxrl import models
from optimizers.micro_adam import micro_adam

from . import _problem
from ._measure import Case, Table
from ._peers import Peers
from .train import step_of

BLOCK = 4096  # of micro_adam
VOCABULARY, SEQUENCES, LENGTH = 256, 8, 64
DEFAULT, LARGE = "micro_adam", "micro_adam, large buckets"

MODELS: dict[str, tuple[nn.Module, Callable[[], dict[str, np.ndarray]]]] = {
  "transformer": (
    models.Transformer(VOCABULARY),
    lambda: _problem.tokens(VOCABULARY, SEQUENCES, LENGTH),
  ),
  "cnn": (models.Cnn(_problem.CLASSES), lambda: _problem.batch(64)),
}
OPTIMIZERS: dict[str, optax.GradientTransformation] = {
  "adamw": optax.adamw(1e-3),
  DEFAULT: micro_adam(1e-3),
  LARGE: micro_adam(1e-3, quant_block_size=100_000),
  "adafactor": optax.adafactor(1e-3),
  "lion": optax.lion(1e-4),
  "sm3": optax.sm3(1e-3),
  # As in its paper, a rank of a quarter of the width; it projects matrices alone.
  "galore": optax.contrib.galore(1e-3, rank=16),
}


def suite(peers: Peers) -> Iterator[Case]:
  """Each optimizer in the library's step, and what it keeps of each leaf of the parameters."""
  del peers
  for name, (module, batch) in MODELS.items():
    programs = {
      optimizer_name: step_of(module, batch(), optimizer, steps=1)
      for optimizer_name, optimizer in OPTIMIZERS.items()
    }
    yield Case(name, programs, [], [table(name)])


def table(model: str) -> Table:
  """Bytes a parameter: of each leaf, of those of a block and more, of the others, and of all."""
  leaves = leaves_of(model)
  rows = [[name, "x".join(map(str, x.shape)), x.size] for name, x in leaves.items()]
  big = [name for name, x in leaves.items() if x.size >= BLOCK]
  groups = {
    f"leaves of at least {BLOCK}": big,
    f"leaves of less than {BLOCK}": [name for name in leaves if name not in big],
    "all": list(leaves),
  }
  rows += [[title, "", sum(leaves[name].size for name in names)] for title, names in groups.items()]
  for optimizer in OPTIMIZERS.values():
    kept = bytes_of_leaves(optimizer, leaves)
    each = [kept[name] for name in leaves]
    together = [sum(kept[name] for name in names) for names in groups.values()]
    for row, size in zip(rows, each + together, strict=True):
      row.append(round(size / row[2], 3))
  title = f"{model}: bytes of optimizer state a parameter"
  return Table(title, ("leaf", "shape", "parameters", *OPTIMIZERS), rows)


def leaves_of(model: str) -> dict[str, jax.ShapeDtypeStruct]:
  """The shapes of the parameters by path."""
  module, batch = MODELS[model]
  init = models.from_flax(module).init
  params = jax.eval_shape(init, jax.random.key(0), jnp.asarray(batch()["inputs"][:1]))[0]
  return {
    jax.tree_util.keystr(path, simple=True, separator="/"): leaf
    for path, leaf in jax.tree.leaves_with_path(params)
  }


def bytes_of_leaves(
  optimizer: optax.GradientTransformation, leaves: dict[str, Any]
) -> dict[str, int]:
  """What the state holds for each leaf: for it alone, less what it holds for none."""
  counters = state_bytes(optimizer, {})
  return {name: state_bytes(optimizer, {name: x}) - counters for name, x in leaves.items()}


def state_bytes(optimizer: optax.GradientTransformation, params: dict[str, Any]) -> int:
  """The size of all arrays of the first state."""
  state = jax.eval_shape(optimizer.init, params)
  return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(state))
