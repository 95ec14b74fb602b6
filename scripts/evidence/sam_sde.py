"""[198] A stochastic differential equation with SAM's drift and noise predicts where SAM goes."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optimizers.sam import sam
from scripts.evidence._experiment import Arm, Claim, Experiment

EXAMPLES, INPUTS, HIDDEN, NOISE = 16, 2, 4, 0.5
RATE, RHO, START = 0.01, 0.1, 0.5
TIMES, EVERY, REFINED, PATHS = 20, 20, 4, 512


def problem(seed: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Inputs `[EXAMPLES, INPUTS]` and noisy targets of a random teacher."""
  inputs_key, teacher_key, noise_key = jax.random.split(jax.random.key(seed), 3)
  inputs = jax.random.normal(inputs_key, (EXAMPLES, INPUTS))
  noise = NOISE * jax.random.normal(noise_key, (EXAMPLES,))
  return inputs, jnp.sin(inputs @ jax.random.normal(teacher_key, (INPUTS,))) + noise


def losses(params: jax.Array, examples: tuple[jax.Array, jax.Array]) -> jax.Array:
  """Half the squared error of a small tanh network at each example."""
  first, last = params[: INPUTS * HIDDEN].reshape(INPUTS, HIDDEN), params[INPUTS * HIDDEN :]
  inputs, targets = examples
  return (jnp.tanh(inputs @ first) @ last - targets) ** 2 / 2


def stepped(examples: Any, rho: float) -> Any:
  """SGD on single examples, behind SAM without normalisation."""
  optimizer = optax.chain(sam(rho, normalize="none"), optax.sgd(RATE))

  def step(params, key):
    row = jax.random.randint(key, (1,), 0, EXAMPLES)
    example = jax.tree.map(lambda x: x[row], examples)

    def loss(params):
      return losses(params, example)[0]

    state = optimizer.init(params)  # only a count
    updates, _ = optimizer.update(jax.grad(loss)(params), state, params, value_fn=loss)
    return optax.apply_updates(params, updates)

  return step


def diffused(examples: Any, rho: float) -> Any:
  """The equation's step of Euler and Maruyama.

  Each example's loss is `f + rho / 2 * |grad f|^2`: the drift is the mean of the gradients of
  that, and the covariance of the noise is theirs, to first order in rho as in the theorem.
  """

  def of_example(params, example):
    def loss(params):
      return losses(params, jax.tree.map(lambda x: x[None], example))[0]

    gradient, product = jax.jvp(jax.grad(loss), (params,), (jax.grad(loss)(params),))
    return gradient + rho * product

  def step(params, key):
    each = jax.vmap(of_example, in_axes=(None, 0))(params, examples)
    drift = jnp.mean(each, axis=0)
    noise = jax.random.normal(key, (EXAMPLES,)) @ (each - drift) / EXAMPLES**0.5
    time = RATE / REFINED
    return params - time * drift + jnp.sqrt(RATE * time) * noise

  return step


@functools.partial(jax.jit, static_argnames=("make", "rho", "steps"))
@functools.partial(jax.vmap, in_axes=(0, None, None, None))
def expected(seed: jax.Array, make: Any, rho: float, steps: int) -> jax.Array:
  """The mean loss over the paths that a step makes, `[TIMES]`, after each so many steps."""
  examples = problem(seed)
  step = make(examples, rho)
  start_key, key = jax.random.split(jax.random.key(seed + 10_000))
  start = START * jax.random.normal(start_key, ((INPUTS + 1) * HIDDEN,))

  def part(paths, key):
    def one(paths, key):
      return jax.vmap(step)(paths, jax.random.split(key, PATHS)), None

    paths, _ = jax.lax.scan(one, paths, jax.random.split(key, steps))
    return paths, jnp.mean(losses_of(paths, examples))

  paths = jnp.broadcast_to(start, (PATHS, *start.shape))
  return jax.lax.scan(part, paths, jax.random.split(key, TIMES))[1]


def losses_of(paths: jax.Array, examples: Any) -> jax.Array:
  """`[PATHS, EXAMPLES]`."""
  return jax.vmap(losses, in_axes=(0, None))(paths, examples)


@functools.cache
def curve(make: Any, rho: float, seeds: tuple[int, ...]) -> np.ndarray:
  """The expected loss over time, `[seeds, TIMES]`."""
  steps = EVERY * (REFINED if make is diffused else 1)
  return np.asarray(expected(jnp.asarray(seeds), make, rho, steps))


def run(rho: float) -> Arm:
  """What happens."""

  def measure(seeds: Sequence[int]):
    return {"curve/expected loss": curve(stepped, rho, tuple(seeds))}

  return {f"rho = {rho}": measure}


def predicted(rho: float, of: float, curves: bool = False) -> Arm:
  """The equation for one radius as a prediction of runs with another."""

  def measure(seeds: Sequence[int]):
    prediction = curve(diffused, rho, tuple(seeds))
    error = np.abs(prediction / curve(stepped, of, tuple(seeds)) - 1)
    found = {"relative error": np.mean(error, axis=1)}
    return {**found, "curve/expected loss": prediction} if curves else found

  return {f"equation of rho = {rho}": measure}


EXPERIMENT = Experiment(
  methods=("sam",),
  family="sharpness",
  setup=(
    "A tanh network of four hidden units, 16 noisy examples of a sine that the seed draws; 400 "
    "steps on single examples, with a learning rate of 0.01 and `sam(normalize='none')` with rho "
    "= 0.1, its square root, as in the theorem. Expected losses are means over 512 paths; the "
    "equations are solved by steps of a quarter of the learning rate. The relative error is the "
    "mean over 20 times. The null predicts runs without SAM."
  ),
  arms={
    "SAM": run(RHO),
    "equation of SAM": predicted(RHO, of=RHO, curves=True),
    "equation of SGD": predicted(0.0, of=RHO, curves=True),
    "equation of SAM, run of SGD": predicted(RHO, of=0.0),
    "equation of SGD, run of SGD": predicted(0.0, of=0.0),
  },
  claims=(
    Claim(
      "SAM's equation predicts the expected loss of SAM better than SGD's equation does",
      *("relative error", "lower", 0.0),
      *("equation of SAM", "equation of SGD"),
      *("equation of SAM, run of SGD", "equation of SGD, run of SGD"),
    ),
  ),
  tuned_by="relative error",
  tuned="lower",
)
