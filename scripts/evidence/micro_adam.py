"""[191] MicroAdam stays on Adam's path by feeding back what it did not apply."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optimizers.micro_adam import micro_adam
from scripts.evidence._experiment import Arm, Claim, Experiment

RATE, STEPS, SPREAD = 0.01, 500, 0.05


def rosenbrock(x: jax.Array) -> jax.Array:
  """The valley along `x_1 = x_0^2`, whose minimum is (1, 1)."""
  return (1 - x[0]) ** 2 + 100 * (x[1] - x[0] ** 2) ** 2


def adam() -> optax.GradientTransformation:
  """What the others are to follow."""
  return optax.adam(RATE)


def with_feedback() -> optax.GradientTransformation:
  """MicroAdam with one of two entries a step, and a window as long as the run."""
  return micro_adam(RATE, m=STEPS, density=0.5, block_size=2, quant_block_size=2, shards=1)


def without_feedback() -> optax.GradientTransformation:
  """Adam on the larger entry."""

  def larger(g: Any, _params: Any = None) -> Any:
    return jnp.where(jnp.abs(g) == jnp.max(jnp.abs(g)), g, 0)

  return optax.chain(optax.stateless(larger), optax.adam(RATE))


def forgetful() -> optax.GradientTransformation:
  """MicroAdam whose error is set to zero after every step."""
  inner = with_feedback()

  def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
    after: Any
    updates, after = inner.update(updates, state, params)
    direction, *rest = after
    leaf = direction.leaves
    nothing = {name: jnp.zeros_like(getattr(leaf, name)) for name in ("codes", "low", "high")}
    return updates, (direction._replace(leaves=leaf._replace(**nothing)), *rest)

  return optax.GradientTransformation(inner.init, update)


def path(optimizer: optax.GradientTransformation, start: jax.Array) -> jax.Array:
  """The points after each step, `[STEPS, 2]`."""

  def step(carry, _):
    x, state = carry
    updates, state = optimizer.update(jax.grad(rosenbrock)(x), state, x)
    x = x + updates
    return (x, state), x

  return jax.lax.scan(step, (start, optimizer.init(start)), length=STEPS)[1]


def arm(make: Callable[[], optax.GradientTransformation]) -> Arm:
  """How far the path leads from Adam's, from points around (-1/2, 1)."""

  @jax.jit
  def distances(seed: jax.Array) -> Any:
    start = jnp.array([-0.5, 1.0]) + SPREAD * jax.random.normal(jax.random.key(seed), (2,))
    return jnp.linalg.norm(path(make(), start) - path(adam(), start), axis=-1)

  def measure(seeds):
    over_time = np.stack([distances(seed) for seed in seeds])
    largest = np.log10(np.maximum(over_time.max(axis=1), 1e-9))
    return {"log10 of the largest distance": largest, "curve/distance": over_time[:, ::10]}

  return {make.__name__: measure}


EXPERIMENT = Experiment(
  methods=("micro_adam", "scale_by_micro_adam"),
  family="compression",
  setup=(
    "Rosenbrock's function in two dimensions, 500 steps at 0.01 from points around (-1/2, 1), one "
    "of two entries a step. The window holds the whole run, so that what differs from Adam is "
    "compression alone. The distance is that to Adam's point of the same step. The null is "
    "MicroAdam whose error is set to zero after every step."
  ),
  arms={
    "method": arm(with_feedback),
    "baseline": arm(without_feedback),
    "null": arm(forgetful),
  },
  claims=(
    Claim(
      "Error feedback keeps the path more than three times as near to Adam's",
      *("log10 of the largest distance", "lower", 0.5),
    ),
  ),
  tuned_by="log10 of the largest distance",
  tuned="lower",
)
