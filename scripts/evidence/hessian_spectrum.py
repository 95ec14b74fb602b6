"""[127] A trained network's Hessian has about as many outliers as there are classes."""

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

EXAMPLES, INPUTS, ALL = 60, 64, 10  # of each class
STEPS, RATE, MOMENTUM = 500, 0.1, 0.9
ORDER, LARGEST, OUTLIER = 80, 40, 0.1


def digits(classes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
  """Images and labels of some classes, which the seed chooses."""
  split = data.in_memory(data.load("digits").splits["train"])
  chosen = np.random.default_rng(seed).permutation(ALL)[:classes]
  rows = np.stack([np.flatnonzero(split["labels"] == c)[:EXAMPLES] for c in chosen])
  inputs = split["inputs"][rows.reshape(-1)].reshape(-1, INPUTS)
  return inputs - inputs.mean(), np.repeat(np.arange(classes), EXAMPLES)


def draw(key: jax.Array, width: int, classes: int) -> Any:
  """The weights and biases of a perceptron with one hidden layer."""
  first, last = jax.random.split(key)
  return {
    "first": jax.random.normal(first, (INPUTS, width)) * (2 / INPUTS) ** 0.5,
    "shift": jnp.zeros(width),
    "last": jax.random.normal(last, (width, classes)) / width**0.5,
    "bias": jnp.zeros(classes),
  }


def mean_loss(params: Any, inputs: jax.Array, labels: jax.Array) -> jax.Array:
  """The cross-entropy."""
  hidden = jax.nn.relu(inputs @ params["first"] + params["shift"])
  logits = hidden @ params["last"] + params["bias"]
  return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))


@functools.cache
def eigenvalues(classes: int, width: int, steps: int, seeds: tuple[int, ...]) -> np.ndarray:
  """The largest of the Hessian after some steps, over the largest of all, `[seeds, LARGEST]`."""
  optimizer = optax.sgd(RATE, momentum=MOMENTUM)

  @jax.jit
  @jax.vmap
  def found(key, inputs, labels):
    def loss(params):
      return mean_loss(params, inputs, labels)

    def step(carry, _):
      params, state = carry
      updates, state = optimizer.update(jax.grad(loss)(params), state)
      return (optax.apply_updates(params, updates), state), None

    params = draw(key, width, classes)
    (params, _), _ = jax.lax.scan(step, (params, optimizer.init(params)), length=steps)
    return hessian_extremes(loss, params, key, count=LARGEST, order=ORDER).largest

  inputs, labels = map(np.stack, zip(*(digits(classes, seed) for seed in seeds), strict=True))
  largest = np.asarray(found(jax.vmap(jax.random.key)(jnp.asarray(seeds)), inputs, labels))
  return largest / largest[:, :1]


def counted(classes: int, width: int = 64, steps: int = STEPS, rivals: bool = False) -> Arm:
  """How many eigenvalues stand out, and how far that is from the number of classes.

  With `rivals`, from the nearer of half and twice that number.
  """

  def measure(seeds: Sequence[int]):
    relative = eigenvalues(classes, width, steps, tuple(seeds))
    outliers = np.sum(relative > OUTLIER, axis=1)
    octaves = np.abs(np.log2(outliers / classes))
    found = {
      "outliers": outliers,
      "octaves from the prediction": np.abs(1 - octaves) if rivals else octaves,
    }
    if not rivals:
      found["curve/log10 of eigenvalues"] = np.log10(np.maximum(relative, 1e-4))
    return found

  return {f"{classes} classes, width {width}, {steps} steps": measure}


def nearer(classes: int, name: str) -> Claim:
  """The claim that the number of classes is a better guess than others."""
  return Claim(
    f"{name.capitalize()}: the number of outliers is nearer to it than to its half or double",
    *("octaves from the prediction", "lower", 0.0),
    *(name, f"{name}, half or double"),
    *(f"{name}, untrained", f"{name}, untrained, half or double"),
  )


NAMES = {10: "ten classes", 5: "five classes"}

EXPERIMENT = Experiment(
  methods=("hessian_spectrum",),
  family="sharpness",
  setup=(
    "Sixty digits of each class, all ten or five drawn by the seed; a perceptron with one hidden "
    "layer of 64; 500 full-batch steps of SGD with momentum to a loss near zero. Outliers are "
    "the eigenvalues of the Hessian above a tenth of the largest, a threshold settled on other "
    "seeds; 40 are computed. "
    "Nulls: a network of twice the width, and the networks before training."
  ),
  arms={
    **{name: counted(n) for n, name in NAMES.items()},
    **{f"{name}, half or double": counted(n, rivals=True) for n, name in NAMES.items()},
    **{f"{name}, untrained": counted(n, steps=0) for n, name in NAMES.items()},
    **{
      f"{name}, untrained, half or double": counted(n, steps=0, rivals=True)
      for n, name in NAMES.items()
    },
    "five classes, twice as wide": counted(5, width=128),
  },
  claims=(
    Claim(
      "Ten classes have more outliers than five, by more than 2.5",
      *("outliers", "higher", 2.5),
      *("ten classes", "five classes", "five classes, twice as wide"),
    ),
    *(nearer(classes, name) for classes, name in NAMES.items()),
  ),
  tuned_by="outliers",
  tuned="higher",
)
