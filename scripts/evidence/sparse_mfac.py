"""[285] Error feedback lets M-FAC work from one entry in a hundred of its gradients."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxrl import data
from optimizers.compressors.top_k import top_k
from optimizers.sparse_mfac import sparse_mfac
from scripts.evidence._experiment import Arm, Claim, Experiment

M, DENSITY, WIDTH, BATCH, STEPS, POINTS = 64, 0.01, 64, 64, 400, 10
RATES, DAMPS = (1e-3, 3e-3, 1e-2, 3e-2), (1e-4, 1e-2)
DIVERGED = 10.0  # a loss that is larger or no number
WHOLE = {"block_size": None, "shards": 1}


def dense(damp: Any) -> optax.GradientTransformation:
  """M-FAC of whole gradients."""
  return sparse_mfac(M, 1.0, damp, **WHOLE)


def sparse(damp: Any) -> optax.GradientTransformation:
  """Of the largest entries of the network's gradient, what is left being added to the next."""
  return optax.flatten(sparse_mfac(M, DENSITY, damp, **WHOLE))


def without_feedback(damp: Any) -> optax.GradientTransformation:
  """The same behind the loss of all but these entries, after which nothing is left."""
  compressor = top_k(DENSITY)

  def update(gradient, _params=None):
    return compressor.add(jnp.zeros_like(gradient), compressor.compress(gradient), 1.0)

  return optax.flatten(optax.chain(optax.stateless(update), sparse_mfac(M, DENSITY, damp, **WHOLE)))


def mean_loss(params: Any, inputs: jax.Array, labels: jax.Array) -> jax.Array:
  """Cross-entropy of a network with one hidden layer."""
  hidden = jnp.tanh(inputs @ params["hidden"] + params["bias"][None])
  logits = hidden @ params["output"]
  return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))


@functools.cache
def split(name: str) -> tuple[np.ndarray, np.ndarray]:
  """Inputs `[B, 64]` and labels of the digits."""
  source: Any = data.load("digits").splits[name]
  labels = np.asarray(source["labels"])
  return np.asarray(source["inputs"]).reshape(len(labels), -1), labels


@functools.partial(jax.jit, static_argnums=0)
def train(make: Any, rate: jax.Array, damp: jax.Array, seed: jax.Array) -> jax.Array:
  """Losses on the training and the validation split along the way, `[POINTS, 2]`."""
  optimizer = optax.chain(make(damp), optax.sgd(rate))
  inputs, labels = map(jnp.asarray, split("train"))
  hidden_key, output_key, data_key = jax.random.split(jax.random.key(seed), 3)
  params = {
    "hidden": jax.random.normal(hidden_key, (inputs.shape[1], WIDTH)) / jnp.sqrt(inputs.shape[1]),
    "bias": jnp.zeros(WIDTH),
    "output": jax.random.normal(output_key, (WIDTH, 10)) / jnp.sqrt(WIDTH),
  }

  def step(carry, key):
    params, state = carry
    rows = jax.random.randint(key, (BATCH,), 0, len(labels))
    gradient = jax.grad(mean_loss)(params, inputs[rows], labels[rows])
    updates, state = optimizer.update(gradient, state, params)
    return (optax.apply_updates(params, updates), state), None

  def part(carry, key):
    carry, _ = jax.lax.scan(step, carry, jax.random.split(key, STEPS // POINTS))
    losses = [
      mean_loss(carry[0], *map(jnp.asarray, split(name))) for name in ("train", "validation")
    ]
    return carry, jnp.stack(losses)

  start = (params, optimizer.init(params))
  return jax.lax.scan(part, start, jax.random.split(data_key, POINTS))[1]


@functools.cache
def trained(make: Any, rate: float, damp: float, seeds: tuple[int, ...]) -> np.ndarray:
  """The logarithms of both losses for all seeds, `[seeds, POINTS, 2]`."""
  losses = np.stack([train(make, rate, damp, seed) for seed in seeds])
  return np.log10(np.where(losses < DIVERGED, losses, DIVERGED))


def arm(make: Callable[..., Any], allowance: float = 0.0) -> Arm:
  """A setting for each learning rate and damping."""

  def measured(rate: float, damp: float, seeds: Sequence[int]):
    losses = trained(make, rate, damp, tuple(seeds))
    return {
      "log10 of the training loss": losses[:, -1, 0],
      "log10 of the training loss, twice the dense one": losses[:, -1, 0] + allowance,
      "log10 of the validation loss": losses[:, -1, 1],
      "curve/log10 of the training loss": losses[:, :, 0],
    }

  return {
    f"{make.__name__}(damp={damp}), sgd({rate})": functools.partial(measured, rate, damp)
    for rate in RATES
    for damp in DAMPS
  }


EXPERIMENT = Experiment(
  methods=("sparse_mfac",),
  family="compression",
  setup=(
    "Digits, a network with one hidden layer of 64 units, 400 steps on batches of 64; M-FAC from "
    "the last 64 gradients, of the whole or of the hundredth of the entries that are largest over "
    "the whole network, with and without error feedback. The null is the latter."
  ),
  arms={
    "feedback": arm(sparse),
    "no feedback": arm(without_feedback),
    "dense": arm(dense, float(np.log10(2))),
  },
  claims=(
    Claim(
      "With feedback the training loss is less than half of that without",
      *("log10 of the training loss", "lower", float(np.log10(2))),
      *("feedback", "no feedback", "no feedback"),
    ),
    Claim(
      "With feedback the training loss is less than twice that of dense M-FAC",
      *("log10 of the training loss, twice the dense one", "lower", 0.0),
      *("feedback", "dense", "no feedback"),
    ),
  ),
  tuned_by="log10 of the validation loss",
  tuned="lower",
  seeds=tuple(range(6)),
  tuning_seeds=(100, 101),
)
