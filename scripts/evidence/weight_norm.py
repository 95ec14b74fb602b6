"""[344] Weight normalization trains badly scaled networks faster, and bears large rates."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optimizers.reparameterized import reparameterized
from optimizers.weights._reparameterization import Reparameterization
from optimizers.weights.weight_norm import weight_norm
from scripts.evidence._experiment import Arm, Claim, Experiment

INPUTS, WIDTH, LAYERS, TEACHER, EXAMPLES, BATCH = 16, 64, 3, 32, 1000, 100
STEPS, POINTS = 600, 20
RATES = (0.003, 0.01, 0.02, 0.05, 0.1, 0.2)
TOO_LARGE, DIVERGED = 10.0, 10.0


def problem(key: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Inputs whose scales differ by up to a hundred, and a random network's targets."""
  inputs_key, scales_key, first_key, last_key = jax.random.split(key, 4)
  inputs = jax.random.normal(inputs_key, (EXAMPLES, INPUTS))
  scales = 10 ** jax.random.uniform(scales_key, (INPUTS,), minval=-1, maxval=1)
  hidden = jnp.tanh(inputs @ jax.random.normal(first_key, (INPUTS, TEACHER)) / INPUTS**0.5)
  targets = hidden @ jax.random.normal(last_key, (TEACHER, 1))
  return scales * inputs, (targets - jnp.mean(targets)) / jnp.std(targets)


def draw(key: jax.Array) -> Any:
  """The weights and biases of a perceptron."""
  sizes = (INPUTS, *(WIDTH,) * LAYERS, 1)
  keys = jax.random.split(key, len(sizes) - 1)
  return [
    {"kernel": jax.random.normal(k, (n, m)) * (2 / n) ** 0.5, "bias": jnp.zeros(m)}
    for k, n, m in zip(keys, sizes, sizes[1:], strict=False)
  ]


def outputs(params: Any, inputs: jax.Array) -> jax.Array:
  """`[B, 1]` of `inputs [B, INPUTS]`."""
  *hidden, last = params
  for layer in hidden:
    inputs = jax.nn.relu(inputs @ layer["kernel"] + layer["bias"])
  return inputs @ last["kernel"] + last["bias"]


def scaled_by(params: Any, inputs: jax.Array) -> Any:
  """The parameters by which each unit has mean 0 and deviation 1 on the inputs."""
  found = []
  for layer in params:
    x = inputs @ layer["kernel"]
    mean, deviation = jnp.mean(x, axis=0), jnp.std(x, axis=0)
    found.append({"kernel": layer["kernel"] / deviation, "bias": -mean / deviation})
    inputs = jax.nn.relu((x - mean) / deviation)
  return found


def mean_loss(params: Any, inputs: jax.Array, targets: jax.Array) -> jax.Array:
  """Half the squared error."""
  return jnp.mean((outputs(params, inputs) - targets) ** 2) / 2


def themselves() -> Reparameterization:
  """Parameters as their own coordinates."""
  return Reparameterization(init=lambda params: params, weights=lambda raw: raw)


@functools.partial(jax.jit, static_argnums=(0, 1))
@functools.partial(jax.vmap, in_axes=(None, None, None, 0))
def losses(coordinates: Any, by_data: bool, rate: jax.Array, seed: jax.Array) -> jax.Array:
  """The loss on all examples along the way, `[POINTS]`."""
  problem_key, draw_key, data_key = jax.random.split(jax.random.key(seed), 3)
  inputs, targets = problem(problem_key)
  optimizer = optax.sgd(rate)
  if coordinates is not None:
    optimizer = reparameterized(optimizer, coordinates())

  def step(carry, key):
    params, state = carry
    rows = jax.random.randint(key, (BATCH,), 0, EXAMPLES)
    gradient = jax.grad(mean_loss)(params, inputs[rows], targets[rows])
    updates, state = optimizer.update(gradient, state, params)
    return (optax.apply_updates(params, updates), state), None

  def part(carry, key):
    carry, _ = jax.lax.scan(step, carry, jax.random.split(key, STEPS // POINTS))
    return carry, mean_loss(carry[0], inputs, targets)

  params = draw(draw_key)
  params = scaled_by(params, inputs) if by_data else params
  start = (params, optimizer.init(params))
  return jax.lax.scan(part, start, jax.random.split(data_key, POINTS))[1]


def arm(coordinates: Any, by_data: bool) -> Arm:
  """A setting for each learning rate; all are also tried at ten times it."""

  def measured(rate: float, seeds: Sequence[int]):
    def logarithms(rate):
      found = np.asarray(losses(coordinates, by_data, rate, jnp.asarray(seeds)))
      return np.log10(np.where(found < DIVERGED, found, DIVERGED))

    curve = logarithms(rate)
    return {
      "log10 of the loss": curve[:, -1],
      "log10 of the loss at ten times the rate": logarithms(TOO_LARGE * rate)[:, -1],
      "curve/log10 of the loss": curve,
    }

  return {f"sgd({rate})": functools.partial(measured, rate) for rate in RATES}


EXPERIMENT = Experiment(
  methods=("weight_norm",),
  family="sharpness",
  setup=(
    "A perceptron with three ReLU layers of 64 on 1000 examples of a random network, whose 16 "
    "inputs differ in scale by up to a hundred; 600 steps of SGD on batches of 100. Initialised "
    "by data, every unit begins with mean 0 and deviation 1. A loss above 10 counts as 10. The "
    "null trains the weights as their own coordinates."
  ),
  arms={
    "weight norm, by data": arm(weight_norm, by_data=True),
    "weight norm": arm(weight_norm, by_data=False),
    "SGD": arm(None, by_data=False),
    "SGD, by data": arm(None, by_data=True),
    "null": arm(themselves, by_data=False),
  },
  claims=(
    Claim(
      "With weight normalization, initialised by data, the loss ends lower than with SGD",
      *("log10 of the loss", "lower", 0.0, "weight norm, by data", "SGD"),
    ),
    Claim(
      "The same where both are initialised by data",
      *("log10 of the loss", "lower", 0.0, "weight norm, by data", "SGD, by data"),
      null_baseline="SGD",
    ),
    Claim(
      "At ten times the best rate its loss is less than a tenth of that of SGD",
      *("log10 of the loss at ten times the rate", "lower", 1.0),
      *("weight norm, by data", "SGD, by data"),
      null_baseline="SGD",
    ),
  ),
  tuned_by="log10 of the loss",
  tuned="lower",
  tuning_seeds=tuple(range(100, 108)),
)
