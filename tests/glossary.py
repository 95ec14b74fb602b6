"""Inputs for every array name that a loss may have, and a tiny model that gives some of them.

A new name is added here, with its shape, and to `jaxrl.catalogue.GLOSSARY`.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

SIZES = {"B": 8, "C": 4, "F": 5, "T": 6}
CLASSES, GROUPS, EXAMPLES = SIZES["C"], 3, 16
TOKEN_NAMES = {"logps", "old_logps", "ref_logps", "chosen_mask", "rejected_mask"}
"""With one of these among its arguments, what a loss gets of log-probabilities is per token."""


class Array(NamedTuple):
  """How a name's values are drawn: its axes, one letter each, and the axes per token."""

  draw: Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]
  axes: str
  token_axes: str = ""


def _normal(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
  return rng.normal(size=shape)


def _log_probability(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
  return np.log(rng.uniform(0.05, 0.95, size=shape))


def _below(bound: int) -> Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]:
  return lambda rng, shape: rng.integers(bound, size=shape)


def _distinct(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
  return rng.permutation(EXAMPLES)[: np.prod(shape)].reshape(shape)


def _ones_with_a_zero(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
  mask = np.ones(shape)
  mask.reshape(-1)[rng.integers(mask.size)] = 0
  return mask


GLOSSARY = {
  "logits": Array(_normal, "BC"),
  "labels": Array(_below(CLASSES), "B"),
  "predictions": Array(_normal, "BC"),
  "targets": Array(_normal, "BC"),
  "teacher_logits": Array(_normal, "BC"),
  "features": Array(_normal, "BF"),
  "index": Array(_distinct, "B"),
  "group": Array(_below(GROUPS), "B"),
  "mask": Array(_ones_with_a_zero, "B", "BT"),
  "chosen_logps": Array(_log_probability, "B", "BT"),
  "rejected_logps": Array(_log_probability, "B", "BT"),
  "ref_chosen_logps": Array(_log_probability, "B", "BT"),
  "ref_rejected_logps": Array(_log_probability, "B", "BT"),
  "chosen_mask": Array(_ones_with_a_zero, "BT"),
  "rejected_mask": Array(_ones_with_a_zero, "BT"),
  "logps": Array(_log_probability, "BT"),
  "old_logps": Array(_log_probability, "BT"),
  "ref_logps": Array(_log_probability, "BT"),
  "advantages": Array(_normal, "B"),
}
FROM_MODEL = ("logits", "predictions", "features", "chosen_logps", "rejected_logps", "logps")


def arrays(names: Collection[str], seed: int = 0) -> dict[str, jax.Array]:
  """Values for the arguments of a loss."""
  rng = np.random.default_rng(seed)
  per_token = not TOKEN_NAMES.isdisjoint(names)
  return {name: _drawn(GLOSSARY[name], rng, per_token) for name in sorted(names)}


def batch(names: Collection[str], seed: int = 0) -> dict[str, jax.Array]:
  """A batch: inputs, a mask, the epoch, and those of `names` that the model doesn't give."""
  given = {*names, "mask"} - set(FROM_MODEL)
  inputs = np.random.default_rng(seed).normal(size=(SIZES["B"], SIZES["F"]))
  per_token = not TOKEN_NAMES.isdisjoint(names)
  rng = np.random.default_rng(seed)
  drawn = {name: _drawn(GLOSSARY[name], rng, per_token) for name in sorted(given)}
  return {**drawn, "inputs": jnp.asarray(inputs), "epoch": jnp.asarray(3, jnp.int32)}


def parameters(seed: int = 0) -> dict[str, jax.Array]:
  """Parameters of the tiny model."""
  rng = np.random.default_rng(seed)
  width = max(SIZES.values())
  make = {"kernel": (SIZES["F"], width), "bias": (width,)}
  return {name: jnp.asarray(rng.normal(size=shape)) for name, shape in make.items()}


def forward_at(
  params: Mapping[str, jax.Array], names: Collection[str] = ()
) -> Callable[..., dict[str, jax.Array]]:
  """The tiny model: every name that a model gives is a part of one linear map of the inputs."""
  per_token = not TOKEN_NAMES.isdisjoint(names)

  def forward(inputs: jax.Array, **options: Any) -> dict[str, jax.Array]:
    del options
    linear = inputs @ params["kernel"] + jnp.expand_dims(params["bias"], 0)
    return {name: _part(name, linear, per_token) for name in FROM_MODEL}

  return forward


def _part(name: str, linear: jax.Array, per_token: bool) -> jax.Array:
  array = GLOSSARY[name]
  axes = (per_token and array.token_axes) or array.axes
  own = jnp.roll(linear, FROM_MODEL.index(name), axis=1)
  part = own[:, 0] if axes == "B" else own[:, : SIZES[axes[1]]]
  return jax.nn.log_sigmoid(part) if array.draw is _log_probability else part


def _drawn(array: Array, rng: np.random.Generator, per_token: bool) -> jax.Array:
  axes = (per_token and array.token_axes) or array.axes
  values = array.draw(rng, tuple(SIZES[axis] for axis in axes))
  integers = np.issubdtype(values.dtype, np.integer)
  return jnp.asarray(values, jnp.int32 if integers else jnp.asarray(0.0).dtype)
