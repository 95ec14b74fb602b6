"""[196] U-DoG is accelerated without tuning: ahead of tuned descent, and of DoG."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optimizers import u_dog as dog
from scripts.evidence._experiment import Arm, Claim, Experiment, Measure

SIZE, CONDITION, GRADIENTS, POINTS = 20, 1000.0, 600, 100
NONE, SOME = "exact", "noisy"
NOISE = {NONE: 0.0, SOME: 0.1}
RATES = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
FIRST = (1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3)
DECAY = 8

Method = Callable[[Any], optax.GradientTransformation]


def u_dog(first: Any) -> optax.GradientTransformation:
  """U-DoG by its first distance."""
  return dog.u_dog(reps_rel=first)


def plain_dog(first: Any) -> optax.GradientTransformation:
  """DoG, which is not accelerated, by its first distance."""
  return optax.contrib.dog(init_step=("heuristic", first))


@functools.partial(jax.jit, static_argnums=0)
@functools.partial(jax.vmap, in_axes=(None, 0, None, None))
def losses(method: Method, seed: Any, setting: Any, size: Any) -> jax.Array:
  """log10 of the loss of the answer after each gradient, under noise of this size."""
  optimizer: Any = method(setting)
  curvatures = jnp.logspace(0, -jnp.log10(CONDITION), SIZE)
  start_key, noise_key = jax.random.split(jax.random.key(seed))
  start = jax.random.normal(start_key, (SIZE,))

  def step(carry, given):
    count, key = given
    x, state, mean = carry
    gradient = curvatures * x + size * jax.random.normal(key, (SIZE,))
    updates, state = optimizer.update(gradient, state, x)
    x = x + updates
    mean = mean + (DECAY + 1) / (count + DECAY + 1) * (x - mean)
    answer = dog.eval_params(state, x) if method is u_dog else jnp.where(size > 0, mean, x)
    return (x, state, mean), jnp.log10(jnp.sum(curvatures * answer**2) / 2)

  given = jnp.arange(GRADIENTS), jax.random.split(noise_key, GRADIENTS)
  return jax.lax.scan(step, (start, optimizer.init(start), start), given)[1]


def arm(method: Method, settings: tuple[float, ...], kind: str) -> Arm:
  """A method by several settings."""

  def measured(setting) -> Measure:
    def measure(seeds):
      over_time = np.asarray(losses(method, jnp.asarray(seeds), setting, NOISE[kind]))
      every = GRADIENTS // POINTS
      return {
        "log10 of the loss": over_time[:, -1],
        f"curve/log10 of the loss, {kind} gradients": over_time[:, every - 1 :: every],
      }

    return measure

  return {f"{method.__name__}({setting})": measured(setting) for setting in settings}


EXPERIMENT = Experiment(
  methods=("u_dog",),
  family="online",
  setup=(
    "A parabola in 20 dimensions with curvatures from 0.001 to 1 and random starts, 600 gradients, "
    "of which U-DoG takes two an iteration; exact, or with normal noise of 0.1 an entry. U-DoG and "
    "DoG are tuned over six first distances, which they are not to need, SGD over six rates. Under "
    "noise SGD and DoG answer by an average with polynomial decay. The null is DoG, which lacks "
    "the acceleration, in the place of U-DoG."
  ),
  arms={
    "method": arm(u_dog, FIRST, NONE),
    "baseline": arm(optax.sgd, RATES, NONE),
    "null": arm(plain_dog, FIRST, NONE),
    "U-DoG, noise": arm(u_dog, FIRST, SOME),
    "SGD, noise": arm(optax.sgd, RATES, SOME),
    "DoG, noise": arm(plain_dog, FIRST, SOME),
  },
  claims=(
    Claim("Exact gradients: a lower loss than tuned SGD", "log10 of the loss", "lower"),
    Claim(
      *("Exact gradients: a lower loss than DoG", "log10 of the loss", "lower"), baseline="null"
    ),
    Claim(
      *("Noise: a lower loss than tuned SGD", "log10 of the loss", "lower"),
      method="U-DoG, noise",
      baseline="SGD, noise",
      null="DoG, noise",
    ),
  ),
  tuned_by="log10 of the loss",
  tuned="lower",
  seeds=tuple(range(10)),
)
