"""[196] U-DoG is accelerated without tuning: ahead of tuned descent, and of DoG."""

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

Answer = Callable[[Any, jax.Array, jax.Array], jax.Array]


def descended(
  optimizer: optax.GradientTransformation, answer: Answer, kind: str, per_step: int
) -> Measure:
  """The loss of the answer over time, at an equal number of gradients."""
  curvatures = jnp.logspace(0, -jnp.log10(CONDITION), SIZE)
  method, steps = optax.with_extra_args_support(optimizer), GRADIENTS // per_step

  @jax.jit
  @jax.vmap
  def run(seed):
    start_key, noise_key = jax.random.split(jax.random.key(seed))
    x = jax.random.normal(start_key, (SIZE,))

    def loss(x, noise=0.0):
      return jnp.sum(curvatures * x**2) / 2 + jnp.sum(noise * x)

    def step(carry, given):
      count, key = given
      x, state, mean = carry
      noise = NOISE[kind] * jax.random.normal(key, (SIZE,))
      value_fn = lambda x: loss(x, noise)  # noqa: E731
      updates, state = method.update(jax.grad(value_fn)(x), state, x, value_fn=value_fn)
      x = x + updates
      mean = mean + (DECAY + 1) / (count + DECAY + 1) * (x - mean)
      return (x, state, mean), jnp.log10(loss(answer(state, x, mean)))

    given = jnp.arange(steps), jax.random.split(noise_key, steps)
    return jax.lax.scan(step, (x, method.init(x), x), given)[1]

  def measure(seeds):
    over_time = np.asarray(run(jnp.asarray(seeds)))
    every = steps // POINTS
    return {
      "log10 of the loss": over_time[:, -1],
      f"curve/log10 of the loss, {kind} gradients": over_time[:, every - 1 :: every],
    }

  return measure


def averaged(kind: str) -> Answer:
  """Of methods without an answer of their own: the last point, under noise a late average."""
  return lambda state, x, mean: mean if kind == SOME else x


def u_dogs(kind: str) -> Arm:
  """U-DoG from several first distances."""
  own: Answer = lambda state, x, mean: dog.eval_params(state, x)  # noqa: E731
  return {f"u_dog(reps_rel={r})": descended(dog.u_dog(reps_rel=r), own, kind, 2) for r in FIRST}


def dogs(kind: str) -> Arm:
  """DoG, which is not accelerated, from as many."""
  return {
    f"dog(init_step=('heuristic', {r}))": descended(
      optax.contrib.dog(init_step=("heuristic", r)), averaged(kind), kind, 1
    )
    for r in FIRST
  }


def descents(kind: str) -> Arm:
  """Gradient descent by several rates, the largest the inverse of the largest curvature."""
  return {f"sgd({r})": descended(optax.sgd(r), averaged(kind), kind, 1) for r in RATES}


EXPERIMENT = Experiment(
  methods=("u_dog",),
  family="online",
  setup=(
    "A parabola in 20 dimensions with curvatures from 0.001 to 1 and random starts, 600 gradients, "
    "of which U-DoG takes two a step; exact, or with normal noise of 0.1 an entry. U-DoG and DoG "
    "are tuned over six first distances, which they are not to need, SGD over six rates. Under "
    "noise SGD and DoG answer by an average with polynomial decay. The null is DoG, which lacks the "
    "acceleration, in the place of U-DoG."
  ),
  arms={
    "method": u_dogs(NONE),
    "baseline": descents(NONE),
    "null": dogs(NONE),
    "U-DoG, noise": u_dogs(SOME),
    "SGD, noise": descents(SOME),
    "DoG, noise": dogs(SOME),
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
