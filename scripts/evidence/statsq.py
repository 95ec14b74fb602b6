"""[106] Weights on levels fixed by a statistic oscillate less, and least after annealing."""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxrl import data
from optimizers.cga import cga
from optimizers.track_oscillation import track_oscillation
from optimizers.weights._quantization import straight_through
from optimizers.weights._reparameterization import Reparameterization
from optimizers.weights.lsq import lsq
from optimizers.weights.statsq import statsq
from scripts.evidence._experiment import Arm, Claim, Experiment

INPUTS, WIDTH, CLASSES, BATCH, BITS = 64, 64, 10, 100, 2
TRAINING, ANNEALING, SLOWER = 600, 400, 0.1
RATES = (0.001, 0.003, 0.01, 0.03)


@functools.cache
def splits() -> dict[str, tuple[np.ndarray, np.ndarray]]:
  """Images and labels of each split of digits."""
  batches = {name: data.in_memory(split) for name, split in data.load("digits").splits.items()}
  return {name: (b["inputs"].reshape(-1, INPUTS), b["labels"]) for name, b in batches.items()}


def learned_statistic() -> Reparameterization:
  """The levels of StatsQ, their scales learned as LSQ learns them: a pair of kernel and scale."""
  half = 2 ** (BITS - 1)

  def init(kernels):
    return [(w, 2 * jnp.mean(jnp.abs(w), axis=0, keepdims=True)) for w in kernels]

  def place(kernel, scale):
    return jnp.clip(half * kernel / scale - 0.5, -half, half - 1)

  def weights(raw):
    found = []
    for kernel, scale in raw:
      factor = 1 / math.sqrt(len(kernel) * (half - 1))
      slow = straight_through(factor * scale, scale)
      inside = place(kernel, slow)
      found.append(slow * (straight_through(inside, jnp.round(inside)) + 0.5) / half)
    return found

  def codes(raw):
    return tuple(jnp.round(place(*pair)).astype(jnp.int32) for pair in raw)

  return Reparameterization(init, weights, codes)


QUANTISERS = {
  "StatsQ": statsq(BITS),
  "LSQ": lsq(BITS, axis=-1),
  "learned": learned_statistic(),
}


def draw(key: jax.Array) -> tuple[Any, Any]:
  """Kernels and biases of a perceptron: its first and last layers, and the hidden ones."""
  sizes = ((INPUTS, WIDTH), (WIDTH, CLASSES), (WIDTH, WIDTH), (WIDTH, WIDTH))
  keys = jax.random.split(key, len(sizes))
  first, last, *hidden = (
    jax.random.normal(k, s) * (2 / s[0]) ** 0.5 for k, s in zip(keys, sizes, strict=True)
  )
  biases = [jnp.zeros(m) for m in (WIDTH, CLASSES, WIDTH, WIDTH)]
  return {"first": first, "last": last, "biases": biases}, hidden


def logits(outer: Any, hidden: Any, inputs: jax.Array) -> jax.Array:
  """`[B, CLASSES]` of images."""
  first, last, *biases = outer["biases"]
  x = jax.nn.relu(inputs @ outer["first"] + first)
  for kernel, bias in zip(hidden, biases, strict=True):
    x = jax.nn.relu(x @ kernel + bias)
  return x @ outer["last"] + last


@functools.partial(jax.jit, static_argnums=(0, 1))
@functools.partial(jax.vmap, in_axes=(None, None, None, 0))
def trained(name: str, boundary: float | None, rate: jax.Array, seed: jax.Array) -> Any:
  """The share of weights that oscillate at the end, and accuracies; annealed with a boundary."""
  by = QUANTISERS[name]
  draw_key, first_key, second_key = jax.random.split(jax.random.key(seed), 3)
  inputs, labels = map(jnp.asarray, splits()["train"])

  def phase(params, rate, key, steps, boundary) -> Any:
    hidden_optimizer = optax.adam(rate)
    if boundary is not None:
      hidden_optimizer = cga(hidden_optimizer, BITS, boundary)
    hidden_optimizer = optax.chain(hidden_optimizer, track_oscillation(by))
    optimizers = optax.adam(rate), hidden_optimizer

    def loss(params, rows):
      outer, raw = params
      found = logits(outer, by.weights(raw), inputs[rows])
      return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(found, labels[rows]))

    def step(carry, key):
      params, states = carry
      gradient = jax.grad(loss)(params, jax.random.randint(key, (BATCH,), 0, len(labels)))
      moves: Any = zip(optimizers, gradient, states, params, strict=True)
      moved: Any = zip(*(o.update(g, s, p) for o, g, s, p in moves), strict=True)
      updates, states = moved
      return (optax.apply_updates(params, updates), states), states[1][1].metrics["oscillating"]

    states = tuple(o.init(p) for o, p in zip(optimizers, params, strict=True))
    (params, _), oscillating = jax.lax.scan(step, (params, states), jax.random.split(key, steps))
    return params, oscillating

  outer, hidden = draw(draw_key)
  params, oscillating = phase((outer, by.init(hidden)), rate, first_key, TRAINING, None)
  if boundary is not None:
    params, later = phase(params, SLOWER * rate, second_key, ANNEALING, boundary)
    oscillating = jnp.concatenate([oscillating, later])
  accuracies = {}
  for split in ("validation", "test"):
    images, truth = map(jnp.asarray, splits()[split])
    found = jnp.argmax(logits(params[0], by.weights(params[1]), images), axis=1)
    accuracies[f"{split}/accuracy"] = jnp.mean(found == truth)
  return oscillating, accuracies


def arm(name: str, boundary: float | None = None) -> Arm:
  """A setting for each learning rate."""

  def measured(rate: float, seeds: Sequence[int]):
    oscillating, accuracies = trained(name, boundary, rate, jnp.asarray(seeds))
    return {
      **accuracies,
      "oscillating weights": oscillating[:, -1],
      "curve/oscillating weights": oscillating[:, ::50],
    }

  return {f"adam({rate})": functools.partial(measured, rate) for rate in RATES}


EXPERIMENT = Experiment(
  methods=("statsq", "cga", "track_oscillation"),
  family="quantization",
  setup=(
    "Digits, a perceptron of three hidden layers of 64, the two kernels between them in two "
    "bits with a scale for each unit; 600 steps of Adam on batches of 100, and 400 more at a "
    "tenth of the rate where annealing is compared. A weight oscillates if the running mean of "
    "its reversals is above 0.005, counted anew in the second part. StatsQ's null learns its "
    "scales as LSQ does, that of CGA freezes nothing."
  ),
  arms={
    "StatsQ": arm("StatsQ"),
    "LSQ": arm("LSQ"),
    "null": arm("learned"),
    "StatsQ, then CGA": arm("StatsQ", 0.005),
    "StatsQ, longer": arm("StatsQ", math.inf),
    "null, longer": arm("StatsQ", 1e9),
  },
  claims=(
    Claim(
      "Fewer weights oscillate with StatsQ than with LSQ",
      *("oscillating weights", "lower", 0.0, "StatsQ", "LSQ"),
    ),
    Claim(
      "Fewer weights oscillate after CGA than after as many steps without it",
      *("oscillating weights", "lower", 0.0, "StatsQ, then CGA", "StatsQ, longer"),
      "null, longer",
    ),
  ),
  tuned_by="validation/accuracy",
  tuned="higher",
  tuning_seeds=tuple(range(100, 108)),
)
