"""[42] A surrogate whose predictions change little around its parameters is searched better."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxrl.oracle import Oracle
from optimizers.ignite import ignite
from scripts.evidence._experiment import Arm, Claim, Experiment

INPUTS, WIDTH, PEAKS, EXAMPLES, BATCH = 4, 64, 6, 100, 64
STEPS, SEARCHES, SEARCH_STEPS, SEARCH_RATE, EDGE = 1000, 64, 150, 0.02, 2.0
RATES, MORE_RATES = (0.003, 0.01), (0.001, 0.002, 0.003, 0.006, 0.01, 0.02)
LEVELS, DECAYS = (0.05, 0.1, 0.2), (0.01, 0.1, 1.0)


def truth(key: jax.Array) -> Callable[[jax.Array], jax.Array]:
  """The highest of a few bells in `[-1, 1]^INPUTS`, below 1."""
  places_key, heights_key, widths_key = jax.random.split(key, 3)
  places = jax.random.uniform(places_key, (PEAKS, INPUTS), minval=-1, maxval=1)
  heights = jax.random.uniform(heights_key, (PEAKS,), minval=0.3, maxval=1)
  widths = (INPUTS / 2) ** 0.5 * jax.random.uniform(widths_key, (PEAKS,), minval=0.4, maxval=0.8)

  def value(x):
    return jnp.max(heights * jnp.exp(-jnp.sum((x - places) ** 2, axis=1) / (2 * widths**2)))

  return jax.vmap(value)


def known(value: Callable[[jax.Array], jax.Array], key: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Half of the worse half of random points, and their values."""
  points = jax.random.uniform(key, (4 * EXAMPLES, INPUTS), minval=-1, maxval=1)
  points = points[jnp.argsort(value(points))][: 2 * EXAMPLES : 2]
  return points, value(points)


def draw(key: jax.Array) -> Any:
  """The weights and biases of the surrogate."""
  sizes = (INPUTS, WIDTH, WIDTH, 1)
  keys = jax.random.split(key, len(sizes) - 1)
  return [
    {"kernel": jax.random.normal(k, (n, m)) * (2 / n) ** 0.5, "bias": jnp.zeros(m)}
    for k, n, m in zip(keys, sizes, sizes[1:], strict=False)
  ]


def predicted(params: Any, inputs: jax.Array) -> jax.Array:
  """`[B, 1]` of points `[B, INPUTS]`."""
  *hidden, last = params
  for layer in hidden:
    inputs = jax.nn.leaky_relu(inputs @ layer["kernel"] + layer["bias"], 0.3)
  return inputs @ last["kernel"] + last["bias"]


def regularized(rate: Any, level: Any) -> optax.GradientTransformation:
  """Adam behind IGNITE, whose multiplier rises while the sharpness is above a level."""
  element = ignite(lam=0.0, eta=0.01, epsilon=level, clamp=True)
  return optax.chain(element, optax.adam(rate))


def switched_off(rate: Any, _level: Any) -> optax.GradientTransformation:
  """The same with a multiplier of zero."""
  return optax.chain(ignite(lam=0.0, eta=0.0), optax.adam(rate))


def plain(rate: Any, _level: Any) -> optax.GradientTransformation:
  """Adam."""
  return optax.adam(rate)


def decayed(rate: Any, decay: Any) -> optax.GradientTransformation:
  """Adam with decoupled weight decay."""
  return optax.adamw(rate, weight_decay=decay)


def trained(optimizer: Any, inputs: jax.Array, targets: jax.Array, key: jax.Array) -> Any:
  """The surrogate's parameters."""
  init_key, data_key = jax.random.split(key)

  def step(carry, key):
    params, state = carry
    rows = jax.random.randint(key, (BATCH,), 0, EXAMPLES)

    def outputs(params):
      return predicted(params, inputs[rows])

    def loss_of(outputs):
      return jnp.mean((outputs[:, 0] - targets[rows]) ** 2)

    def loss(params):
      return loss_of(outputs(params))

    value_fn = Oracle(loss, params, outputs=outputs, loss_of=loss_of)
    updates, state = optimizer.update(jax.grad(loss)(params), state, params, value_fn=value_fn)
    return (optax.apply_updates(params, updates), state), None

  params = draw(init_key)
  carry, _ = jax.lax.scan(step, (params, optimizer.init(params)), jax.random.split(data_key, STEPS))
  return carry[0]


def climbed(params: Any, points: jax.Array) -> jax.Array:
  """Where gradient ascent on the surrogate ends."""

  def step(points, _):
    uphill = jax.grad(lambda x: jnp.sum(predicted(params, x)))(points)
    return jnp.clip(points + SEARCH_RATE * uphill, -EDGE, EDGE), None

  return jax.lax.scan(step, points, length=SEARCH_STEPS)[0]


@functools.partial(jax.jit, static_argnums=0)
@functools.partial(jax.vmap, in_axes=(None, None, None, 0))
def searched(make: Any, rate: jax.Array, setting: jax.Array, seed: jax.Array) -> Any:
  """The values of the surrogate's maximisers, true and predicted."""
  truth_key, known_key, key = jax.random.split(jax.random.key(seed), 3)
  value = truth(truth_key)
  inputs, values = known(value, known_key)
  mean, deviation = jnp.mean(values), jnp.std(values)
  optimizer = optax.with_extra_args_support(make(rate, setting))
  params = trained(optimizer, inputs, (values - mean) / deviation, key)
  found = climbed(params, inputs[jnp.argsort(-values)[:SEARCHES]])
  return {
    "true value": jnp.mean(value(found)),
    "predicted value": mean + deviation * jnp.mean(predicted(params, found)),
    "best known value": jnp.max(values),
  }


def arm(make: Any, rates: tuple[float, ...], settings: tuple[float, ...] = (0.0,)) -> Arm:
  """A setting for each learning rate, and level or decay."""

  def measured(rate: float, setting: float, seeds: Sequence[int]):
    return searched(make, rate, setting, jnp.asarray(seeds))

  return {
    f"{make.__name__}({rate}, {setting})": functools.partial(measured, rate, setting)
    for rate in rates
    for setting in settings
  }


EXPERIMENT = Experiment(
  methods=("ignite",),
  family="sharpness",
  setup=(
    "Functions of four inputs, the highest of six bells; the surrogate, a perceptron of two "
    "layers of 64, knows 100 points of the worse half, and trains for 1000 steps of Adam. From "
    "the best 64 of them, gradient ascent on the surrogate makes 150 steps; what counts is the "
    "mean of the true values where it ends. Settings are tuned by that, on other functions. The "
    "null is `ignite(lam=0, eta=0)`."
  ),
  arms={
    "IGNITE": arm(regularized, RATES, LEVELS),
    "plain": arm(plain, MORE_RATES),
    "weight decay": arm(decayed, RATES, DECAYS),
    "null": arm(switched_off, MORE_RATES),
  },
  claims=(
    Claim(
      "The maximiser of the regularized surrogate has a higher true value than the plain one's",
      *("true value", "higher", 0.0, "IGNITE", "plain"),
    ),
    Claim(
      "It has a higher true value than with weight decay",
      *("true value", "higher", 0.0, "IGNITE", "weight decay"),
      null_baseline="plain",
    ),
  ),
  tuned_by="true value",
  tuned="higher",
  seeds=tuple(range(20)),
  tuning_seeds=tuple(range(100, 120)),
)
