"""[259] Warm-up lets a network survive a large learning rate, by pushing its curvature down."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxrl import data
from jaxrl.diagnostics.hessian_spectrum import hessian_extremes
from scripts.evidence._experiment import Arm, Claim, Experiment

EXAMPLES, INPUTS, WIDTH, DEPTH, CLASSES = 300, 64, 64, 9, 10
STEPS, WARM_UP, EVERY, ORDER = 800, 500, 25, 10
LARGE, SMALL = 16.0, 0.5
LEARNED = 0.1  # the loss at which curvatures are compared
DIVERGED = 3.0  # log10 of the loss, where that is larger or no number


def draw(seed: jax.Array) -> Any:
  """The weights and biases of a perceptron without normalisation."""
  first, hidden, last = jax.random.split(jax.random.key(seed), 3)
  shapes = {"first": (INPUTS, WIDTH), "hidden": (DEPTH, WIDTH, WIDTH), "last": (WIDTH, CLASSES)}
  keys = {"first": first, "hidden": hidden, "last": last}
  return {
    name: {
      "kernel": jax.random.normal(keys[name], shape) * (1.5 / shape[-2]) ** 0.5,
      "bias": jnp.zeros((*shape[:-2], shape[-1])),
    }
    for name, shape in shapes.items()
  }


def logits(params: Any, inputs: jax.Array) -> jax.Array:
  """`[B, CLASSES]` of images `[B, INPUTS]`."""

  def dense(x, layer):
    return x @ layer["kernel"] + layer["bias"]

  def hidden(x, layer):
    return jnp.tanh(dense(x, layer)), None

  x, _ = jax.lax.scan(hidden, jnp.tanh(dense(inputs, params["first"])), params["hidden"])
  return dense(x, params["last"])


@functools.cache
def runs() -> Any:
  """Descents at a multiple of `2 / top eigenvalue` of the start, for each seed."""
  split = data.in_memory(data.load("digits").splits["train"])
  inputs = jnp.asarray(split["inputs"][:EXAMPLES]).reshape(EXAMPLES, INPUTS)
  labels = jnp.asarray(split["labels"][:EXAMPLES])

  def loss(params):
    losses = optax.softmax_cross_entropy_with_integer_labels(logits(params, inputs), labels)
    return jnp.mean(losses)

  def top(params):
    return hessian_extremes(loss, params, jax.random.key(0), order=ORDER).largest[0]

  def run(multiple, warm_up, seed):
    start = draw(seed)
    at_start = top(start)

    def step(params, i):
      share = jnp.minimum(1, (i + 1) / warm_up)
      rate = share * multiple * 2 / at_start
      return jax.tree.map(lambda w, g: w - rate * g, params, jax.grad(loss)(params)), None

    def part(params, steps):
      params, _ = jax.lax.scan(step, params, steps)
      return params, (loss(params), top(params) / at_start)

    return jax.lax.scan(part, start, jnp.arange(STEPS).reshape(-1, EVERY))[1]

  return jax.jit(jax.vmap(run, in_axes=(None, None, 0)))


def trained(multiple: float, warm_up: int) -> Arm:
  """At a learning rate that is reached after some steps."""

  def measure(seeds: Sequence[int]):
    losses, curvature = map(np.asarray, runs()(multiple, float(warm_up), jnp.asarray(seeds)))
    losses = np.log10(np.where(losses < 10**DIVERGED, losses, 10**DIVERGED))
    octaves = np.log2(np.where(curvature > 0, curvature, 1))
    return {
      "log10 of the loss": losses[:, -1],
      "octaves of the top eigenvalue": _where_learned(octaves, losses),
      "curve/log10 of the loss": losses,
      "curve/octaves of the top eigenvalue": octaves,
    }

  return {f"{multiple} * 2 / top eigenvalue": measure}


def _where_learned(values: np.ndarray, losses: np.ndarray) -> np.ndarray:
  """Values `[seeds, points]` where the loss first is small, and 0 where it never is."""
  learned = losses <= np.log10(LEARNED)
  first = values[np.arange(len(values)), learned.argmax(axis=1)]
  return np.where(learned.any(axis=1), first, 0.0)


EXPERIMENT = Experiment(
  methods=("hessian_spectrum",),
  family="sharpness",
  setup=(
    "A tanh perceptron of ten hidden layers of 64 on 300 digits, gradient descent for 800 steps. "
    "The learning rate is 16 times what the Hessian's largest eigenvalue at the start allows, "
    "2 / eigenvalue, at once or after a linear warm-up of 500 steps. The small one is half of "
    "that limit; with it the null warms up, too. Eigenvalues are those where the loss first is "
    "below 0.1, looked at every 25 steps, over those of the start: where it vanishes, so do they. "
    "A loss above 1000 counts as 1000."
  ),
  arms={
    "warm-up": trained(LARGE, WARM_UP),
    "at once": trained(LARGE, 1),
    "small rate, warm-up": trained(SMALL, WARM_UP),
    "small rate": trained(SMALL, 1),
  },
  claims=(
    Claim(
      "With warm-up the loss ends more than a decade below that without",
      *("log10 of the loss", "lower", 1.0),
      *("warm-up", "at once", "small rate, warm-up", "small rate"),
    ),
    Claim(
      "At the same loss the largest eigenvalue is less than half of that with a small rate",
      *("octaves of the top eigenvalue", "lower", 1.0),
      *("warm-up", "small rate", "small rate, warm-up"),
    ),
  ),
  tuned_by="log10 of the loss",
  tuned="lower",
)
