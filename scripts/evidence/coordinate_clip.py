"""[389] Clipping coordinates makes SGD faster: steps turn away from where the loss is sharp."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxrl.diagnostics.directional_sharpness import directional_sharpness
from jaxrl.models import Transformer
from optimizers.coordinate_clip import adam_coordinate_clip, coordinate_clip
from scripts.evidence._experiment import Arm, Claim, Experiment

TOKENS, LENGTH, BATCH, STEPS, POINTS = 64, 16, 32, 200, 10
SGD_RATES, ADAM_RATES = (0.03, 0.1, 0.3, 1.0), (0.003, 0.01, 0.03, 0.1)
FRACTION, ADAM_FRACTION = 0.1, 0.5
DIVERGED = 10.0  # a loss that is larger or no number

MODEL = Transformer(TOKENS, max_length=LENGTH, width=32, depth=1, heads=2, dropout=0.0)


def chain(seed: jax.Array) -> jax.Array:
  """Logits `[TOKENS, TOKENS]` of the next token: some are frequent, by Zipf's law."""
  frequency = -jnp.log(jnp.arange(1.0, TOKENS + 1))
  return frequency + 2 * jax.random.normal(jax.random.key(seed), (TOKENS, TOKENS))


def sequences(logits: jax.Array, key: jax.Array) -> jax.Array:
  """Fresh sequences `[BATCH, LENGTH + 1]` of a Markov chain."""

  def following(tokens, key):
    tokens = jax.random.categorical(key, logits[tokens])
    return tokens, tokens

  start = jnp.zeros(BATCH, jnp.int32)
  return jax.lax.scan(following, start, jax.random.split(key, LENGTH + 1))[1].T


def mean_loss(params: Any, batch: jax.Array) -> jax.Array:
  """The cross-entropy of the next token."""
  logits: Any = MODEL.apply({"params": params}, batch[:, :-1], False)
  return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, batch[:, 1:]))


def sgd(rate: Any, _fraction: Any) -> optax.GradientTransformation:
  """With momentum."""
  return optax.sgd(rate, momentum=0.9)


def clipped_sgd(rate: Any, fraction: Any) -> optax.GradientTransformation:
  """The same behind `coordinate_clip`."""
  return optax.chain(coordinate_clip(fraction), optax.sgd(rate, momentum=0.9))


def adam(rate: Any, _fraction: Any) -> optax.GradientTransformation:
  """With its defaults."""
  return optax.adam(rate)


def clipped_adam(rate: Any, fraction: Any) -> optax.GradientTransformation:
  """Adam with a clipped numerator."""
  return adam_coordinate_clip(rate, fraction=fraction)


@functools.partial(jax.jit, static_argnums=0)
def train(make: Any, rate: jax.Array, fraction: jax.Array, seed: jax.Array) -> Any:
  """Mean losses, and for SGD the sharpness along gradient and clipped gradient, `[POINTS]`."""
  optimizer, clip, logits = make(rate, fraction), coordinate_clip(FRACTION), chain(seed)
  init_key, data_key = jax.random.split(jax.random.key(seed + 10_000))
  params = MODEL.init(init_key, jnp.zeros((1, LENGTH), jnp.int32), False)["params"]

  def step(carry, key):
    params, state = carry
    loss, gradient = jax.value_and_grad(mean_loss)(params, sequences(logits, key))
    updates, state = optimizer.update(gradient, state, params)
    return (optax.apply_updates(params, updates), state), loss

  def part(carry, key):
    carry, losses = jax.lax.scan(step, carry, jax.random.split(key, STEPS // POINTS))
    if make not in (sgd, clipped_sgd):
      return carry, (jnp.mean(losses),)
    batch = sequences(logits, key)
    gradient = jax.grad(mean_loss)(carry[0], batch)
    clipped, _ = clip.update(gradient, clip.init(gradient))

    def along(direction):
      return directional_sharpness(lambda w: mean_loss(w, batch), carry[0], direction).sharpness

    both = jax.tree.map(lambda *leaves: jnp.stack(leaves), gradient, clipped)
    return carry, (jnp.mean(losses), *jax.lax.map(along, both))

  start = (params, optimizer.init(params))
  return jax.lax.scan(part, start, jax.random.split(data_key, POINTS))[1]


@functools.cache
def trained(make: Any, rate: float, fraction: float, seeds: tuple[int, ...]) -> Any:
  """The same for all seeds, `[seeds, POINTS]`, one after the other: one program for any number."""
  return tuple(map(np.stack, zip(*(train(make, rate, fraction, s) for s in seeds), strict=True)))


def arm(make: Any, rates: tuple[float, ...], fraction: float, clipped: bool = False) -> Arm:
  """A setting for each learning rate; the sharpness is that along the gradient or its clip."""

  def measured(rate: float, seeds: Sequence[int]):
    losses, *sharpness = trained(make, rate, fraction, tuple(seeds))
    losses = np.where(losses < DIVERGED, losses, DIVERGED)
    found = {"mean loss": np.mean(losses, axis=1), "curve/loss": losses}
    if sharpness:
      along = np.nan_to_num(np.mean(sharpness[clipped], axis=1))
      found["log10 of directional sharpness"] = np.log10(np.maximum(along, 1e-6))
    return found

  return {f"{make.__name__}({rate})": functools.partial(measured, rate) for rate in rates}


EXPERIMENT = Experiment(
  methods=("coordinate_clip", "adam_coordinate_clip"),
  family="sharpness",
  setup=(
    "A transformer of one block of width 32 on sequences of a random Markov chain over 64 tokens "
    "with frequencies by Zipf's law, 200 steps on fresh batches of 32; SGD with momentum 0.9. A "
    "tenth of the coordinates is clipped, half of them in Adam, as in the paper. The mean loss is "
    "that of all steps. Sharpness is that along the gradient or the clipped gradient at the same "
    "ten points on the path of SGD. The null is `coordinate_clip(0)`."
  ),
  arms={
    "clipped SGD": arm(clipped_sgd, SGD_RATES, FRACTION),
    "SGD": arm(sgd, SGD_RATES, 0.0),
    "SGD, clipped direction": arm(sgd, SGD_RATES, 0.0, clipped=True),
    "nothing clipped": arm(clipped_sgd, SGD_RATES, 0.0),
    "clipped Adam": arm(clipped_adam, ADAM_RATES, ADAM_FRACTION),
    "Adam": arm(adam, ADAM_RATES, 0.0),
  },
  claims=(
    Claim(
      "SGD with clipped coordinates trains faster",
      *("mean loss", "lower", 0.0),
      *("clipped SGD", "SGD", "nothing clipped"),
    ),
    *(
      Claim(
        f"Along the clipped direction the loss is {words} along the gradient",
        *("log10 of directional sharpness", "lower", margin),
        *("SGD, clipped direction", "SGD", "nothing clipped"),
      )
      for words, margin in (
        ("less sharp than", 0.0),
        ("less than half as sharp as", float(np.log10(2))),
      )
    ),
    Claim(
      "Adam with clipped coordinates trains faster",
      *("mean loss", "lower", 0.0),
      *("clipped Adam", "Adam", "nothing clipped", "SGD"),
    ),
  ),
  tuned_by="mean loss",
  tuned="lower",
  seeds=tuple(range(6)),
  tuning_seeds=(100, 101, 102),
)
