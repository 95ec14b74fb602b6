"""Small Flax models, and the two functions that the train step needs of any model."""

import functools
import importlib
import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp

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


class Reparameterized(nn.Module):
  """A layer that trains other coordinates than its own parameters.

  `Reparameterized(nn.Dense(10), weight_norm())` starts at the weights that the layer draws, and
  its parameters are the coordinates: any optimizer trains them.

  Attributes:
    layer: a Flax module.
    by: the coordinates, a Reparameterization such as `weight_norm()` or `weight_compander()`.
  """

  layer: nn.Module
  by: Any

  @nn.compact
  def __call__(self, *args, **kwargs) -> Any:
    """What the layer returns."""

    def run(layer):
      return layer(*args, **kwargs)

    lifted = nn.map_variables(
      run, "params", self.by.weights, self.by.init, init=self.is_initializing()
    )
    return lifted(self.layer)


class QuantizedCotangents(nn.Module):
  """A layer whose backward pass has few bits.

  What comes back to its outputs is rounded, and so are the gradients made from it. Its interval
  is one of its parameters, which `int4_gradients` has to train. In evaluation nothing changes.

  Attributes:
    layer: a Flax module with one array as its outputs.
    by: a CotangentQuantizer, `optimizers.int4_gradients.quantized_cotangents()`. It draws from
      the stream `dropout`.
  """

  layer: nn.Module
  by: Any

  @nn.compact
  def __call__(self, *args, **kwargs) -> jax.Array:
    """What the layer returns."""
    interval = self.param("interval", lambda _: self.by.init())
    return self.by.apply(self.layer(*args, **kwargs), interval, self.make_rng("dropout"))


class QkAttention(nn.Module):
  """Attention that compares tokens by one matrix a head, made from query and key weights.

  Logits are `x M x^T` over the root of a head's size. Without rounding in `qk` it is
  `nn.MultiHeadDotProductAttention` without biases in queries and keys.

  Attributes:
    heads: of the attention, a divisor of the width.
    qk: `qk(query, key) -> M [heads, width, width]` of weights `[width, heads, size]`, such as
      `optimizers.weights.qk_reparam.qk_reparam`.
  """

  heads: int
  qk: Callable[[jax.Array, jax.Array], jax.Array]

  @nn.compact
  def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """`x [B, T, width]` attended to; position t sees those where `mask [B, 1, T, T]` is 1."""
    width = x.shape[-1]
    if width % self.heads:
      raise ValueError(f"heads must divide the width {width}, got {self.heads}")
    shape = width, self.heads, width // self.heads
    draw = nn.initializers.lecun_normal(in_axis=0, out_axis=(1, 2))
    query, key = (self.param(name, draw, shape) for name in ("query", "key"))
    matrix = self.qk(query, key).astype(x.dtype)
    logits = jnp.einsum("btc,hce,bse->bhts", x, matrix, x).astype(jnp.float32)
    logits = logits / shape[-1] ** 0.5
    if mask is not None:
      logits = jnp.where(mask, logits, jnp.finfo(logits.dtype).min)
    value = nn.DenseGeneral(shape[1:], dtype=x.dtype, name="value")(x)
    seen = jnp.einsum("bhts,bshd->bthd", nn.softmax(logits).astype(x.dtype), value)
    return nn.DenseGeneral(width, axis=(-2, -1), dtype=x.dtype, name="out")(seen)


class WeightNormalized(nn.Module):
  """A layer with weight normalization (Salimans and Kingma, 2016), initialised by data.

  With `y = g * (v / |v|) x + b` for each unit, the batch that `init` sees gets outputs of mean 0
  and standard deviation `scale`, if the layers before have been initialised by it, too. A single
  example has no deviation: from one, g is `scale` and b is 0. In the paper, v has deviation
  0.05: `WeightNormalized(nn.Dense(64, use_bias=False, kernel_init=nn.initializers.normal(0.05)))`.

  Attributes:
    layer: such as `nn.Dense` or `nn.Conv`, without a bias: units on the last axis.
    scale: deviation of the first outputs.
  """

  layer: nn.Module
  scale: float = 1.0

  def __post_init__(self):
    if getattr(self.layer, "use_bias", False):
      raise ValueError("layer must have use_bias=False: WeightNormalized has a bias of its own")
    super().__post_init__()

  @nn.compact
  def __call__(self, inputs: jax.Array) -> jax.Array:
    """The layer's outputs, with their scale and bias."""
    x = nn.WeightNorm(self.layer, use_scale=False)(inputs)
    mean, deviation = _moments(x)
    g = self.param("scale", lambda _: self.scale / deviation)
    b = self.param("bias", lambda _: -g * mean)
    g, b = (jnp.broadcast_to(unit.astype(x.dtype), x.shape) for unit in (g, b))
    return g * x + b


class MeanOnlyBatchNorm(nn.Module):
  """Takes the batch's mean off each unit, and adds a bias: for layers with weight normalization.

  Noise of the batch's variance stays out of the gradients (Salimans and Kingma, 2016).

  Attributes:
    use_running_average: whether the mean is the running one, as in evaluation.
    momentum: of the running mean.
  """

  use_running_average: bool
  momentum: float = 0.9

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """`x [..., units]`, centred."""
    units = x.shape[-1:]
    running = self.variable("batch_stats", "mean", lambda: jnp.zeros(units))
    bias = self.param("bias", nn.initializers.zeros, units)
    mean = running.value
    if not self.use_running_average:
      mean = jnp.mean(x.reshape(-1, *units).astype(jnp.float32), axis=0)
      if not self.is_initializing():
        running.value = self.momentum * running.value + (1 - self.momentum) * mean
    return x + jnp.broadcast_to((bias - mean).astype(x.dtype), x.shape)


def _moments(x: jax.Array) -> tuple[jax.Array, jax.Array]:
  """The mean and the standard deviation of each unit; 0 and 1 of a single example."""
  units = x.shape[-1:]
  if x.size == x.shape[-1]:
    return jnp.zeros(units), jnp.ones(units)
  rows = x.reshape(-1, *units).astype(jnp.float32)
  return jnp.mean(rows, axis=0), jnp.sqrt(jnp.var(rows, axis=0) + 1e-10)


Outputs: TypeAlias = jax.Array | dict[str, jax.Array]
"""An array, or a mapping of `logits` and `predictions`, which are it, and `features`."""


class Mlp(nn.Module):
  """Fully connected layers on flattened inputs."""

  num_outputs: int
  widths: tuple[int, ...] = (128, 128)
  show_features: bool = False

  @nn.compact
  def __call__(self, inputs: jax.Array, train: bool) -> Outputs:
    """Outputs `[B, num_outputs]` of `inputs [B, ...]`."""
    x = inputs.reshape(inputs.shape[0], -1)
    for width in self.widths:
      x = nn.relu(nn.Dense(width)(x))
    return _head(self, x)


class Cnn(nn.Module):
  """Pairs of 3 x 3 convolutions with BatchNorm; each further pair sees half the resolution."""

  num_outputs: int
  channels: tuple[int, ...] = (32, 64)
  dropout: float = 0.3
  show_features: bool = False

  @nn.compact
  def __call__(self, inputs: jax.Array, train: bool) -> Outputs:
    """Outputs `[B, num_outputs]` of images `inputs [B, H, W, C]`."""
    _need_images("cnn", inputs)
    x = inputs
    for i, channels in enumerate(self.channels):
      for stride in (1 if i == 0 else 2, 1):
        x = nn.Conv(channels, (3, 3), strides=stride, use_bias=False)(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x))
    x = nn.Dropout(self.dropout, deterministic=not train)(x.mean(axis=(1, 2)))
    return _head(self, x)


class ResNet(nn.Module):
  """The residual network for small images of He et al. (2016): `6 n + 2` layers, three widths.

  The first convolution keeps the resolution; every further width halves it. Shortcuts
  between widths are 1 x 1 convolutions.

  Attributes:
    num_outputs: of the last layer.
    widths: channels of each stage.
    blocks: n, residual blocks a stage; 1 makes ResNet-8, 3 ResNet-20.
    norm: `batch` for BatchNorm, or `group` for GroupNorm, whose examples are independent.
    show_features: whether the outputs show what the last layer sees.
    cotangents: rounds those of the convolutions but the first, if given; a CotangentQuantizer.
  """

  num_outputs: int
  widths: tuple[int, ...] = (16, 32, 64)
  blocks: int = 1
  norm: str = "batch"
  show_features: bool = False
  cotangents: Any = None

  def __post_init__(self):
    check.one_of("norm", self.norm, ("batch", "group"))
    super().__post_init__()

  @nn.compact
  def __call__(self, inputs: jax.Array, train: bool) -> Outputs:
    """Outputs `[B, num_outputs]` of images `inputs [B, H, W, C]`."""
    _need_images("resnet", inputs)

    def conv(x, width, size, stride=1):
      layer = nn.Conv(width, (size, size), strides=stride, use_bias=False)
      if self.cotangents is not None and x is not inputs:
        layer = QuantizedCotangents(layer, self.cotangents)
      x = layer(x)
      if self.norm == "group":
        return nn.GroupNorm(num_groups=math.gcd(_GROUPS, width))(x)
      return nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)

    x = nn.relu(conv(inputs, self.widths[0], 3))
    for stage, width in enumerate(self.widths):
      for block in range(self.blocks):
        stride = 2 if stage and not block else 1
        same = stride == 1 and x.shape[-1] == width
        shortcut = x if same else conv(x, width, 1, stride)
        x = conv(nn.relu(conv(x, width, 3, stride)), width, 3)
        x = nn.relu(x + shortcut)
    return _head(self, x.mean(axis=(1, 2)))


class Block(nn.Module):
  """Attention and two dense layers, each behind a LayerNorm and added to its input."""

  heads: int
  dropout: float

  @nn.compact
  def __call__(self, x: jax.Array, train: bool, mask: jax.Array | None = None) -> jax.Array:
    """`x [B, T, width]` after the block; position t sees those where `mask` is 1."""
    width = x.shape[-1]
    dropout = functools.partial(nn.Dropout, self.dropout, deterministic=not train)
    attention = nn.MultiHeadDotProductAttention(
      self.heads, dtype=x.dtype, force_fp32_for_softmax=True
    )
    x = x + dropout()(attention(nn.LayerNorm()(x), mask=mask))
    hidden = nn.gelu(nn.Dense(4 * width)(nn.LayerNorm()(x)))
    return x + dropout()(nn.Dense(width)(hidden))


class Vit(nn.Module):
  """A Vision Transformer (Dosovitskiy et al., 2021): pre-norm, the mean of its tokens at the end.

  Attributes:
    num_outputs: of the last layer.
    patch: side of the square patches, which are the tokens.
    width: of a token.
    depth: number of blocks.
    heads: of the attention, a divisor of the width.
    dropout: rate after attention, dense layers and embedding.
    show_features: whether the outputs show what the last layer sees.
  """

  num_outputs: int
  patch: int = 2
  width: int = 64
  depth: int = 4
  heads: int = 4
  dropout: float = 0.1
  show_features: bool = False

  @nn.compact
  def __call__(self, inputs: jax.Array, train: bool) -> Outputs:
    """Outputs `[B, num_outputs]` of images `inputs [B, H, W, C]`."""
    _need_images("vit", inputs)
    batch, height, width, channels = inputs.shape
    if height % self.patch or width % self.patch:
      need = f"height and width that are multiples of its patch of {self.patch}"
      raise ValueError(f"vit needs {need}, got inputs of shape {inputs.shape}")
    down, across = height // self.patch, width // self.patch
    x = inputs.reshape(batch, down, self.patch, across, self.patch, channels)
    x = x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, down * across, -1)
    x = nn.Dense(self.width)(x)
    x = x + self.param("positions", _SMALL, (down * across, self.width))[None]
    x = nn.Dropout(self.dropout, deterministic=not train)(x)
    for _ in range(self.depth):
      x = Block(self.heads, self.dropout)(x, train)
    return _head(self, nn.LayerNorm()(x).mean(axis=1))


class Transformer(nn.Module):
  """A decoder-only transformer: pre-norm, causal, with learned positions.

  Attributes:
    num_outputs: classes of a position, usually those of the next token.
    vocabulary: number of tokens; `None` for as many as outputs.
    max_length: positions that there are.
    width: of a token.
    depth: number of blocks.
    heads: of the attention, a divisor of the width.
    dropout: rate after attention, dense layers and embedding.
    show_features: whether the outputs show what the last layer sees.
  """

  num_outputs: int
  vocabulary: int | None = None
  max_length: int = 256
  width: int = 64
  depth: int = 2
  heads: int = 4
  dropout: float = 0.1
  show_features: bool = False

  @nn.compact
  def __call__(self, inputs: jax.Array, train: bool) -> Outputs:
    """Outputs `[B, T, num_outputs]` of tokens `inputs [B, T]`; none sees a later token."""
    if inputs.ndim != 2 or not jnp.issubdtype(inputs.dtype, jnp.integer):
      got = f"{inputs.dtype} inputs of shape {inputs.shape}"
      raise ValueError(f"transformer needs whole numbers as tokens [B, T], got {got}")
    length = inputs.shape[1]
    if length > self.max_length:
      raise ValueError(f"transformer has max_length {self.max_length}, got {length} tokens")
    x = nn.Embed(self.vocabulary or self.num_outputs, self.width, embedding_init=_SMALL)(inputs)
    x = x + self.param("positions", _SMALL, (self.max_length, self.width))[None, :length]
    x = nn.Dropout(self.dropout, deterministic=not train)(x)
    for _ in range(self.depth):
      x = Block(self.heads, self.dropout)(x, train, nn.make_causal_mask(inputs))
    return _head(self, nn.LayerNorm()(x))


def _head(model: Any, features: jax.Array) -> Outputs:
  """The outputs of the last layer, and `features`, what it sees, where the model shows them."""
  outputs = nn.Dense(model.num_outputs)(features)
  if not model.show_features:
    return outputs
  return {"logits": outputs, "predictions": outputs, "features": features}


def _need_images(model: str, inputs: jax.Array) -> None:
  if inputs.ndim != 4:
    raise ValueError(f"{model} needs images [B, H, W, C], got inputs of shape {inputs.shape}")


_GROUPS = 8
_SMALL = nn.initializers.normal(0.02)


def _resnet_int4(num_outputs: int, show_features: bool) -> ResNet:
  method = importlib.import_module("optimizers.int4_gradients")
  quantizer = method.quantized_cotangents(bits=4)
  return ResNet(num_outputs, show_features=show_features, cotangents=quantizer)


MODELS: dict[str, Callable[..., nn.Module]] = {
  "cnn": Cnn,
  "mlp": Mlp,
  "resnet": ResNet,
  "resnet_gn": functools.partial(ResNet, norm="group"),
  "resnet_int4": _resnet_int4,
  "transformer": Transformer,
  "vit": Vit,
}
CONVOLUTIONAL = ("cnn", "resnet", "resnet_gn", "resnet_int4")
OPTIMIZERS = {"resnet_int4": "int4_gradients"}
"""Optimizers that models need, since no other can train all of their parameters."""


def make(name: str, num_outputs: int, *, show_features: bool = False) -> Model:
  """The Model called `name`, with `num_outputs` outputs; ValueError if there is none.

  With `show_features` the outputs are a mapping, which holds what the last layer sees, too.
  """
  check.one_of("model", name, MODELS)
  return from_flax(MODELS[name](num_outputs, show_features=show_features))
