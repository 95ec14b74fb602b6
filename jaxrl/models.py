"""Small Flax models, and the two functions that the train step needs of any model."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax

from . import check


class Model(NamedTuple):
  """A model as pure functions.

  Attributes:
    init: `init(key, inputs) -> (params, model_state)`; the state holds what training
      updates without gradients, such as the statistics of BatchNorm.
    apply: `apply(params, model_state, inputs, key, train) -> (outputs, model_state)`.
  """

  init: Callable[..., tuple[Any, Any]]
  apply: Callable[..., tuple[Any, Any]]


def from_flax(module: nn.Module) -> Model:
  """The Model of a Flax module whose `__call__` takes `(inputs, train)`."""

  def init(key, inputs):
    variables = dict(module.init({"params": key, "dropout": key}, inputs, train=False))
    return variables.pop("params"), variables

  def apply(params, model_state, inputs, key, train):
    variables = {"params": params, **model_state}
    outputs, changed = module.apply(
      variables, inputs, train=train, rngs={"dropout": key}, mutable=list(model_state) * train
    )
    return outputs, {**model_state, **changed}

  return Model(init, apply)


class Mlp(nn.Module):
  """Fully connected layers on flattened inputs."""

  num_outputs: int
  widths: tuple[int, ...] = (128, 128)

  @nn.compact
  def __call__(self, inputs: jax.Array, train: bool) -> jax.Array:
    """Outputs `[B, num_outputs]` of `inputs [B, ...]`."""
    x = inputs.reshape(inputs.shape[0], -1)
    for width in self.widths:
      x = nn.relu(nn.Dense(width)(x))
    return nn.Dense(self.num_outputs)(x)


class Cnn(nn.Module):
  """Pairs of 3 x 3 convolutions with BatchNorm; each further pair sees half the resolution."""

  num_outputs: int
  channels: tuple[int, ...] = (32, 64)
  dropout: float = 0.3

  @nn.compact
  def __call__(self, inputs: jax.Array, train: bool) -> jax.Array:
    """Outputs `[B, num_outputs]` of images `inputs [B, H, W, C]`."""
    if inputs.ndim != 4:
      raise ValueError(f"cnn needs images [B, H, W, C], got inputs of shape {inputs.shape}")
    x = inputs
    for i, channels in enumerate(self.channels):
      for stride in (1 if i == 0 else 2, 1):
        x = nn.Conv(channels, (3, 3), strides=stride, use_bias=False)(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x))
    x = nn.Dropout(self.dropout, deterministic=not train)(x.mean(axis=(1, 2)))
    return nn.Dense(self.num_outputs)(x)


MODELS = {"cnn": Cnn, "mlp": Mlp}
CONVOLUTIONAL = ("cnn",)


def make(name: str, num_outputs: int) -> Model:
  """The Model called `name`, with `num_outputs` outputs; ValueError if there is none."""
  check.one_of("model", name, MODELS)
  return from_flax(MODELS[name](num_outputs))
