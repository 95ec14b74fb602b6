"""[169] The z-error loss leaves gross outliers out of a regression."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxrl import spec, train
from jaxrl.models import Model
from scripts.evidence._experiment import Arm, Claim, Experiment, Measure, Measurements

SLOPE, NOISE, OUTLIER, SHARE = 2.0, 0.1, 20.0, 0.05
BATCH, STEPS = 64, 1000
RATES, MORE_RATES = (0.05, 0.2), (0.005, 0.01, 0.02, 0.05, 0.1, 0.2)
THRESHOLDS = (1.5, 2.0, 3.0)

LINE = Model(
  init=lambda key, inputs: ({"slope": jnp.zeros([]), "intercept": jnp.zeros([])}, {}),
  apply=lambda params, state, inputs, key, train: (
    params["slope"] * inputs[:, 0] + params["intercept"],
    state,
  ),
)


def batch(key: jax.Array) -> dict[str, jax.Array]:
  """Fresh examples of the line, a twentieth of them far above it."""
  inputs_key, noise_key, outlier_key = jax.random.split(key, 3)
  inputs = jax.random.normal(inputs_key, (BATCH, 1))
  noise = NOISE * jax.random.normal(noise_key, (BATCH,))
  outlier = OUTLIER * jax.random.bernoulli(outlier_key, SHARE, (BATCH,))
  targets = SLOPE * inputs[:, 0] + noise + outlier
  return {"inputs": inputs, "targets": targets, "mask": jnp.ones(BATCH)}


def fitted(objective: str, rate: float) -> Measure:
  """The line that SGD with a cosine schedule finds, for each seed."""
  parts = train.make_train(
    LINE,
    spec.objective(objective),
    optax.sgd(optax.cosine_decay_schedule(rate, STEPS)),
    jnp.zeros((1, 1)),
  )

  @jax.jit
  @jax.vmap
  def errors(seed):
    def step(state, i):
      state, _ = parts.step(state, batch(jax.random.fold_in(jax.random.key(seed), i)))
      return state, None

    state, _ = jax.lax.scan(step, parts.init(seed), jnp.arange(STEPS))
    held_out = batch(jax.random.fold_in(jax.random.key(seed), STEPS))
    outputs, _ = LINE.apply(state.params, {}, held_out["inputs"], None, False)
    return {
      "log10 of the error": jnp.log10(
        jnp.hypot(state.params["slope"] - SLOPE, state.params["intercept"])
      ),
      "median absolute error": jnp.median(jnp.abs(outputs - held_out["targets"])),
    }

  return lambda seeds: errors(jnp.asarray(seeds))


def arm(objectives: list[str], rates: tuple[float, ...]) -> Arm:
  """A setting for each objective and learning rate."""
  return {
    f"{objective}, sgd({rate})": functools.partial(_measured, objective, rate)
    for objective in objectives
    for rate in rates
  }


def _measured(objective: str, rate: float, seeds: Sequence[int]) -> Measurements:
  return fitted(objective, rate)(seeds)


EXPERIMENT = Experiment(
  methods=("z_error",),
  family="outliers",
  setup=(
    "The line y = 2 x with noise of 0.1, and 5 % of the targets 20 too high; 1000 steps of SGD on "
    "fresh batches of 64. The error is the distance of slope and intercept from the true ones. "
    "The null has a threshold that nothing reaches."
  ),
  arms={
    "method": arm([f"squared_error() | z_error(tau={tau})" for tau in THRESHOLDS], RATES),
    "baseline": arm(["squared_error()"], MORE_RATES),
    "null": arm(["squared_error() | z_error(tau=1e9)"], MORE_RATES),
  },
  claims=(
    Claim(
      "The line is at least five times nearer to the true one than with the squared error",
      *("log10 of the error", "lower", float(np.log10(5))),
    ),
  ),
  tuned_by="median absolute error",
  tuned="lower",
)
