"""[366] Layers that learn from random projections of the error align with backpropagation."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxrl import data
from optimizers.dfa import dfa, dfa_alignment, dfa_feedback
from scripts.evidence._experiment import Arm, Claim, Experiment

INPUTS, WIDTH, DEPTH, CLASSES, BATCH = 64, 256, 3, 10, 100
STEPS, POINTS, NARROW = 400, 20, 4
RATES = (0.1, 0.3, 1.0, 3.0)
WIDE, BOTTLENECK = (WIDTH,) * DEPTH, (WIDTH, NARROW, WIDTH)
FIXED, FRESH, NONE = "fixed", "fresh", "none"


@functools.cache
def splits() -> dict[str, tuple[np.ndarray, np.ndarray]]:
  """Images and labels of each split of digits."""
  batches = {name: data.in_memory(split) for name, split in data.load("digits").splits.items()}
  return {name: (b["inputs"].reshape(-1, INPUTS), b["labels"]) for name, b in batches.items()}


def digits(split: str) -> tuple[jax.Array, jax.Array]:
  """Images and labels."""
  inputs, labels = splits()[split]
  return jnp.asarray(inputs), jnp.asarray(labels)


def draw(key: jax.Array, widths: tuple[int, ...]) -> Any:
  """The weights and biases of a perceptron."""
  sizes = (INPUTS, *widths, CLASSES)
  keys = jax.random.split(key, len(sizes) - 1)
  return [
    {"kernel": jax.random.normal(k, (n, m)) / n**0.5, "bias": jnp.zeros(m)}
    for k, n, m in zip(keys, sizes, sizes[1:], strict=False)
  ]


def dense(layer: Any, inputs: jax.Array) -> jax.Array:
  """A linear layer."""
  return inputs @ layer["kernel"] + layer["bias"]


def hidden(layer: Any, inputs: jax.Array) -> jax.Array:
  """The same and its activation."""
  return jnp.tanh(dense(layer, inputs))


def mean_loss(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """The cross-entropy."""
  return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))


LAYERS = [hidden] * DEPTH + [dense]


@functools.partial(jax.jit, static_argnums=(0, 1))
@functools.partial(jax.vmap, in_axes=(None, None, None, 0))
def trained(feedback: str, widths: tuple[int, ...], rate: jax.Array, seed: jax.Array) -> Any:
  """Accuracies along the way `[POINTS]`, and the alignment of each hidden layer."""
  draw_key, feedback_key, data_key = jax.random.split(jax.random.key(seed), 3)
  value_and_grad, alignment = dfa(LAYERS, mean_loss), dfa_alignment(LAYERS, mean_loss)
  inputs, labels = digits("train")

  def matrices(key):
    return dfa_feedback(key if feedback == FRESH else feedback_key, widths, CLASSES)

  def step(params, key):
    rows = jax.random.randint(key, (BATCH,), 0, len(labels))
    sent = jax.tree.map(lambda b: b * (feedback != NONE), matrices(key))
    _, gradient = value_and_grad(params, sent, inputs[rows], labels[rows])
    return jax.tree.map(lambda w, g: w - rate * g, params, gradient), None

  def part(params, keys):
    params, _ = jax.lax.scan(step, params, keys)
    cosines = alignment(params, matrices(keys[0]), *digits("validation"))
    return params, (accuracy(params, "validation"), jnp.mean(cosines, axis=1))

  keys = jax.random.split(data_key, STEPS).reshape(POINTS, -1)
  params, (accuracies, cosines) = jax.lax.scan(part, draw(draw_key, widths), keys)
  return accuracies, cosines, accuracy(params, "test")


def accuracy(params: Any, split: str) -> jax.Array:
  """The share of a split that is classified correctly."""
  inputs, labels = digits(split)
  for run, layer in zip(LAYERS, params, strict=True):
    inputs = run(layer, inputs)
  return jnp.mean(jnp.argmax(inputs, axis=1) == labels)


def arm(feedback: str, widths: tuple[int, ...] = WIDE) -> Arm:
  """A setting for each learning rate."""

  def measured(rate: float, seeds: Sequence[int]):
    accuracies, cosines, test = trained(feedback, widths, rate, jnp.asarray(seeds))
    return {
      "validation/accuracy": accuracies[:, -1],
      "test/accuracy": test,
      "mean cosine": jnp.mean(cosines[:, -1], axis=1),
      "cosine of the first layer": cosines[:, -1, 0],
      "curve/accuracy": accuracies,
      "curve/mean cosine": jnp.mean(cosines, axis=2),
    }

  return {f"{feedback} feedback, {rate}": functools.partial(measured, rate) for rate in RATES}


EXPERIMENT = Experiment(
  methods=("dfa", "dfa_feedback", "dfa_alignment"),
  family="sharpness",
  setup=(
    "Digits, tanh layers of 256, 256 and 256, 400 steps of SGD on batches of 100. Cosines between "
    "the errors of direct feedback alignment and of backpropagation are means over validation "
    "examples after training. The last layer alone is trained where the feedback is zero. The "
    "bottleneck is a second layer of 4, fewer than the classes. The null draws other feedback "
    "matrices at every step."
  ),
  arms={
    "DFA": arm(FIXED),
    "last layer alone": arm(NONE),
    "null": arm(FRESH),
    "DFA, bottleneck": arm(FIXED, BOTTLENECK),
  },
  claims=(
    Claim(
      "Direct feedback alignment is more accurate than training the last layer alone",
      *("test/accuracy", "higher", 0.0, "DFA", "last layer alone"),
    ),
    Claim(
      "Hidden layers align with backpropagation: the mean cosine rises by more than 0.1",
      *("mean cosine", "higher", 0.1, "DFA", "last layer alone"),
    ),
    Claim(
      "In front of a bottleneck they align less, by more than 0.05",
      *("cosine of the first layer", "lower", 0.05, "DFA, bottleneck", "DFA"),
      null_baseline="last layer alone",
    ),
  ),
  tuned_by="validation/accuracy",
  tuned="higher",
  tuning_seeds=tuple(range(100, 108)),
)
