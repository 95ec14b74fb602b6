"""[348] Intervals of gradients that suit the large ones train better than others."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxrl import data
from optimizers.int4_gradients import Interval, int4_gradients, quantized_cotangents
from scripts.evidence._experiment import Arm, Claim, Experiment

INPUTS, WIDTH, DEPTH, CLASSES, BATCH = 64, 64, 4, 10, 100
BITS, ALPHA, STEPS, POINTS, TRIED = 4, 0.01, 600, 20, 40
RATES = (0.03, 0.1, 0.3, 1.0)
ADAPTIVE, WHOLE, LEAST, NULL = "adaptive", "one", "least error", "null"
ROUND = quantized_cotangents(BITS, alpha=ALPHA)


@functools.cache
def splits() -> dict[str, tuple[np.ndarray, np.ndarray]]:
  """Images and labels of each split of digits."""
  batches = {name: data.in_memory(split) for name, split in data.load("digits").splits.items()}
  return {name: (b["inputs"].reshape(-1, INPUTS), b["labels"]) for name, b in batches.items()}


def rounded(cotangent: jax.Array, gamma: jax.Array, key: jax.Array) -> jax.Array:
  """What a layer with this interval sends back."""
  interval = Interval(gamma, jnp.zeros([]))
  return jax.vjp(lambda x: ROUND.apply(x, interval, key), cotangent)[1](cotangent)[0]


def least_error(cotangent: jax.Array) -> jax.Array:
  """The interval with the least expected squared error of all entries."""
  magnitudes = jnp.abs(cotangent)
  largest = jnp.maximum(jnp.max(magnitudes), 1e-30)

  def error(gamma):
    step = 2 * gamma * largest / (2**BITS - 2)
    place = jnp.minimum(magnitudes, gamma * largest) / step
    above = place - jnp.floor(place)
    clipped = jnp.maximum(magnitudes - gamma * largest, 0)
    return jnp.mean(step**2 * above * (1 - above) + clipped**2)

  gammas = jnp.arange(1, TRIED + 1) / TRIED
  return gammas[jnp.argmin(jax.lax.map(error, gammas))]


def error_of_large(cotangent: jax.Array, gamma: jax.Array, key: jax.Array) -> jax.Array:
  """The mean error of the largest entries, as a fraction of their mean magnitude."""
  magnitudes, places = jax.lax.top_k(jnp.abs(cotangent).ravel(), int(ALPHA * cotangent.size))
  error = jnp.abs(rounded(cotangent, gamma, key) - cotangent).ravel()[places]
  return jnp.sum(error) / jnp.maximum(jnp.sum(magnitudes), 1e-30)


@jax.custom_vjp
def by_least_error(x: jax.Array, key: jax.Array) -> jax.Array:
  """The identity, whose cotangents are rounded in that interval."""
  del key
  return x


by_least_error.defvjp(
  lambda x, key: (x, key), lambda key, g: (rounded(g, least_error(g), key), None)
)


def draw(key: jax.Array, how: str) -> Any:
  """Kernels, biases, and the intervals of all layers but the first and the last."""
  sizes = (INPUTS, *(WIDTH,) * DEPTH, CLASSES)
  keys = jax.random.split(key, len(sizes) - 1)
  start = ROUND.init() if how == ADAPTIVE else Interval(jnp.ones([]), jnp.zeros([]))
  return {
    "layers": [
      {"kernel": jax.random.normal(k, (n, m)) * (2 / n) ** 0.5, "bias": jnp.zeros(m)}
      for k, n, m in zip(keys, sizes, sizes[1:], strict=False)
    ],
    "intervals": [start] * (DEPTH - 1),
  }


def logits(params: Any, inputs: jax.Array, how: str, key: jax.Array, shifts: Any) -> jax.Array:
  """`[B, CLASSES]`; a shift behind each rounding gets the gradient that is to be rounded."""
  keys = jax.random.split(key, DEPTH - 1)
  x = inputs
  for i, layer in enumerate(params["layers"]):
    x = x @ layer["kernel"] + layer["bias"]
    if 0 < i < DEPTH:
      if how == LEAST:
        x = by_least_error(x, keys[i - 1])
      else:
        x = ROUND.apply(x, params["intervals"][i - 1], keys[i - 1])
      x = x + shifts[i - 1]
    x = jax.nn.relu(x) if i < DEPTH else x
  return x


def mean_loss(outputs: jax.Array, labels: jax.Array) -> jax.Array:
  """The cross-entropy."""
  return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(outputs, labels))


@functools.partial(jax.jit, static_argnums=0)
@functools.partial(jax.vmap, in_axes=(None, None, 0))
def trained(how: str, rate: jax.Array, seed: jax.Array) -> Any:
  """Along the way `[POINTS]`: the loss on all training images, errors and gammas; the test's."""
  draw_key, data_key = jax.random.split(jax.random.key(seed))
  inputs, labels = map(jnp.asarray, splits()["train"])
  step_size = 1e-3 if how == ADAPTIVE else 0.0
  optimizer = int4_gradients(optax.sgd(rate, momentum=0.9), step_size)

  def outputs(params, split):
    images, truth = map(jnp.asarray, splits()[split])
    return logits(params, images, NULL, data_key, [0.0] * (DEPTH - 1)), truth

  zeros = [jnp.zeros((BATCH, WIDTH))] * (DEPTH - 1)

  def loss(params, shifts, rows, key):
    return mean_loss(logits(params, inputs[rows], how, key, shifts), labels[rows])

  def step(carry, key):
    params, state = carry
    rows_key, noise_key = jax.random.split(key)
    noise_key = jax.random.fold_in(noise_key, how == NULL)
    rows = jax.random.randint(rows_key, (BATCH,), 0, len(labels))
    gradient = jax.grad(loss)(params, zeros, rows, noise_key)
    updates, state = optimizer.update(gradient, state, params)
    return (optax.apply_updates(params, updates), state), None

  def part(carry, keys):
    carry, _ = jax.lax.scan(step, carry, keys)
    params: Any = carry[0]
    errors, gammas = [], []
    cotangents: Any = jax.grad(loss, argnums=1)(params, zeros, jnp.arange(BATCH), keys[0])
    for g, interval in zip(cotangents, params["intervals"], strict=True):
      gamma = least_error(g) if how == LEAST else interval.gamma
      errors.append(error_of_large(g, gamma, keys[1]))
      gammas.append(gamma)
    return carry, (
      mean_loss(*outputs(params, "train")),
      jnp.mean(jnp.stack(errors)),
      jnp.mean(jnp.stack(gammas)),
    )

  params = draw(draw_key, how)
  keys = jax.random.split(data_key, STEPS).reshape(POINTS, -1)
  carry, along = jax.lax.scan(part, (params, optimizer.init(params)), keys)
  found = {split: outputs(carry[0], split) for split in ("validation", "test")}
  accuracies = {
    f"{split}/accuracy": jnp.mean(jnp.argmax(z, axis=1) == y) for split, (z, y) in found.items()
  }
  return along, accuracies, mean_loss(*found["validation"])


def arm(how: str) -> Arm:
  """A setting for each learning rate."""

  def measured(rate: float, seeds: Sequence[int]):
    (loss, error, gamma), accuracies, validation = trained(how, rate, jnp.asarray(seeds))
    logarithm = jnp.log10(jnp.where(loss < 10, loss, 10))
    return {
      **accuracies,
      "validation/nll": validation,
      "error of large gradients": jnp.mean(error[:, POINTS // 2 :], axis=1),
      "log10 of the loss": logarithm[:, -1],
      "mean gamma": gamma[:, -1],
      "curve/log10 of the loss": logarithm,
      "curve/error of large gradients": error,
      "curve/gamma": gamma,
    }

  return {f"{how}, sgd({rate})": functools.partial(measured, rate) for rate in RATES}


EXPERIMENT = Experiment(
  methods=("int4_gradients", "quantized_cotangents"),
  family="quantization",
  setup=(
    "Digits, a perceptron of four ReLU layers of 64, 600 steps of SGD with momentum 0.9 on "
    "batches of 100. What comes back to the three inner ones is rounded to four bits, at random, "
    "in the interval of the method (with alpha = 0.01, since a layer has 6400 outputs), in the "
    "whole range of each batch, or in the interval with the least expected squared error of all "
    "its entries. Errors are those of the largest hundredth, by the mean of the second half of "
    "the run. The null rounds in the whole range, with other random numbers."
  ),
  arms={how: arm(how) for how in (ADAPTIVE, WHOLE, LEAST, NULL)},
  claims=(
    Claim(
      "The error of large gradients is lower with the method's interval than with all the range",
      *("error of large gradients", "lower", 0.0, ADAPTIVE, WHOLE, NULL),
    ),
    Claim(
      "It is lower than with the interval of the least error of all gradients",
      *("error of large gradients", "lower", 0.0, ADAPTIVE, LEAST, NULL),
      null_baseline=WHOLE,
    ),
    Claim(
      "The training loss ends lower than with all the range",
      *("log10 of the loss", "lower", 0.0, ADAPTIVE, WHOLE, NULL),
    ),
    Claim(
      "The training loss ends lower than with the interval of the least error",
      *("log10 of the loss", "lower", 0.0, ADAPTIVE, LEAST, NULL),
      null_baseline=WHOLE,
    ),
  ),
  tuned_by="validation/nll",
  tuned="lower",
  tuning_seeds=tuple(range(100, 108)),
)
