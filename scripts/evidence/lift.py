"""[109] Fine-tuning principal weights forgets less, and learns more than the largest weights do."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxrl import data
from optimizers.lift import lift
from scripts.evidence._experiment import Arm, Claim, Experiment

WIDTHS, CLASSES, EXAMPLES, BATCH = (64, 128, 128), 5, 200, 50
BEFORE, STEPS, POINTS, EVERY, DENSITY = 400, 300, 15, 100, 0.05
RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
SOURCE, TARGET = 0, 1  # digits 0 to 4, and 5 to 9


@functools.cache
def halves(split: str, half: int) -> tuple[np.ndarray, np.ndarray]:
  """Images of five of the ten digits, and their labels, 0 to 4."""
  batch = data.in_memory(data.load("digits").splits[split])
  rows = batch["labels"] // CLASSES == half
  return batch["inputs"][rows].reshape(-1, WIDTHS[0]), batch["labels"][rows] % CLASSES


def digits(split: str, half: int) -> tuple[jax.Array, jax.Array]:
  """The same on the device."""
  inputs, labels = halves(split, half)
  return jnp.asarray(inputs), jnp.asarray(labels)


def draw(key: jax.Array, sizes: Sequence[int]) -> Any:
  """The weights and biases of dense layers."""
  keys = jax.random.split(key, len(sizes))
  return [
    {"kernel": jax.random.normal(k, (n, m)) * (2 / n) ** 0.5, "bias": jnp.zeros(m)}
    for k, n, m in zip(keys, sizes, sizes[1:], strict=False)
  ]


def logits(params: Any, inputs: jax.Array) -> jax.Array:
  """Outputs `[B, 5]` of hidden layers and a head."""
  for layer in params["trunk"]:
    inputs = jax.nn.relu(inputs @ layer["kernel"] + layer["bias"][None])
  (head,) = params["head"]
  return inputs @ head["kernel"] + head["bias"][None]


def fitted(
  optimizer: optax.GradientTransformation,
  params: Any,
  examples: tuple[jax.Array, jax.Array],
  keys: jax.Array,
  report: Callable[[Any], Any],
) -> tuple[Any, Any]:
  """The parameters after a step for each key `[points, steps]`, and each point's report."""
  inputs, labels = examples

  def loss(params, rows):
    values = logits(params, inputs[rows])
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(values, labels[rows]))

  def step(carry, key):
    params, state = carry
    rows = jax.random.randint(key, (BATCH,), 0, len(labels))
    updates, state = optimizer.update(jax.grad(loss)(params, rows), state, params)
    return (optax.apply_updates(params, updates), state), None

  def part(carry, keys):
    carry, _ = jax.lax.scan(step, carry, keys)
    return carry, report(carry[0])

  (params, _), reports = jax.lax.scan(part, (params, optimizer.init(params)), keys)
  return params, reports


def accuracy(params: Any, split: str, half: int) -> jax.Array:
  """The share of a split's half that is told apart among its five classes."""
  inputs, labels = digits(split, half)
  return jnp.mean(jnp.argmax(logits(params, inputs), axis=1) == labels)


@functools.cache
def pretrained(seeds: tuple[int, ...]) -> Any:
  """Networks that know the digits 0 to 4."""

  @jax.jit
  @jax.vmap
  def train(seed):
    keys = jax.random.split(jax.random.key(seed), 3)
    params = {"trunk": draw(keys[0], WIDTHS), "head": draw(keys[1], (WIDTHS[-1], CLASSES))}
    steps = jax.random.split(keys[2], (1, BEFORE))
    return fitted(optax.adam(1e-3), params, digits("train", SOURCE), steps, lambda _: 0)[0]

  return train(jnp.asarray(seeds))


Method = Callable[[Any], optax.GradientTransformation]
"""The optimizer of the hidden layers, by learning rate."""


@functools.cache
def compiled(method: Method) -> Callable[..., Any]:
  """Fine-tunes a network for each seed."""

  def report(head, params):
    known = {"trunk": params["trunk"], "head": head}
    found = {
      f"{split}/{name}": accuracy(*asked)
      for split in ("validation", "test")
      for name, asked in (
        ("source accuracy", (known, split, SOURCE)),
        ("target accuracy", (params, split, TARGET)),
      )
    }
    return found

  def tune(rate, network, seed):
    keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), 1), 3)
    inputs, labels = digits("train", TARGET)
    few = jax.random.choice(keys[0], len(labels), (EXAMPLES,), replace=False)
    start = {"trunk": network["trunk"], "head": draw(keys[1], (WIDTHS[-1], CLASSES))}
    optimizer = optax.partition(
      {"trunk": method(rate), "head": optax.adam(1e-3)}, {"trunk": "trunk", "head": "head"}
    )
    steps = jax.random.split(keys[2], (POINTS, STEPS // POINTS))
    told = functools.partial(report, network["head"])
    return fitted(optimizer, start, (inputs[few], labels[few]), steps, told)[1]

  return jax.jit(jax.vmap(tune, in_axes=(None, 0, 0)))


def arm(methods: dict[str, Method], rates: Sequence[float] = RATES) -> Arm:
  """A setting for each method and learning rate."""

  def measured(method: Method, rate: float, seeds: Sequence[int]):
    along = compiled(method)(rate, pretrained(tuple(seeds)), jnp.asarray(seeds))
    last = {name: np.asarray(values)[:, -1] for name, values in along.items()}
    curves = {
      f"curve/{name}": along[f"test/{name}"] for name in ("source accuracy", "target accuracy")
    }
    return {**last, **curves}

  return {
    f"{name}, {rate}": functools.partial(measured, method, rate)
    for name, method in methods.items()
    for rate in rates
  }


def of_lift(filter_rank: int, density: float = DENSITY, every: int = EVERY) -> Method:
  """LIFT with all but the learning rate."""
  return lambda rate: lift(rate, filter_rank=filter_rank, update_interval=every, density=density)


NO_FILTER = max(WIDTHS)
EXPERIMENT = Experiment(
  methods=("lift",),
  family="memory",
  setup=(
    "A perceptron of two hidden layers of 128 learns the digits 0 to 4, and then, from 200 "
    "examples and with a new head, 5 to 9, by 300 steps on batches of 50. Digits 0 to 4 are told "
    "apart by the old head. LIFT trains a twentieth of each hidden matrix, of rank 2 or 8, chosen "
    "anew every 100 steps; magnitude masks are the same without the filter. The new head learns "
    "by Adam at 1e-3 in all arms. The nulls are LIFT of all entries against full fine-tuning, "
    "and magnitude masks that are chosen once against those that are chosen anew."
  ),
  arms={
    "LIFT": arm({f"lift(filter_rank={rank})": of_lift(rank) for rank in (2, 8)}, RATES[2:5]),
    "full fine-tuning": arm({"adam": lambda rate: optax.adam(rate, b2=0.95)}),
    "magnitude masks": arm({"magnitudes": of_lift(NO_FILTER)}),
    "LIFT of all entries": arm({"lift(density=1)": of_lift(NO_FILTER, density=1.0)}),
    "masks chosen once": arm({"magnitudes, once": of_lift(NO_FILTER, every=STEPS + 2)}),
  },
  claims=(
    Claim(
      "After learning 5 to 9, LIFT knows 0 to 4 better than full fine-tuning does",
      *("test/source accuracy", "higher", 0.0, "LIFT", "full fine-tuning"),
      null="LIFT of all entries",
    ),
    Claim(
      "LIFT learns 5 to 9 better than masks of the largest weights with as many entries",
      *("test/target accuracy", "higher", 0.0, "LIFT", "magnitude masks"),
      null="masks chosen once",
    ),
  ),
  tuned_by="validation/target accuracy",
  tuned="higher",
  tuning_seeds=tuple(range(100, 108)),
)
