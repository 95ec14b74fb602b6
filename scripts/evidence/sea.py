"""[11] Between adversary and chance, optimism pays for what cannot be foreseen and for no more."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxrl import online
from optimizers.mirror_descent import mirror_descent
from optimizers.mirror_maps import euclidean
from optimizers.optimistic_omd import optimistic_omd
from optimizers.projections import box
from optimizers.step_sizes import sea_convex
from scripts.evidence._experiment import Arm, Claim, Experiment, Measure

ROUNDS, GAMES = 4096, 64
NOISES = (0.0, 0.1, 0.3, 1.0)
SCALES = (0.5, 1.0, 2.0, 4.0)
DIAMETER = 2.0
CHECKED = 2 ** np.arange(6, 13)
"""The numbers of rounds after which the regret is looked at, 64 to 4096."""

Player = Callable[[Any, Any], optax.GradientTransformationExtraArgs]


def bound(noise: Any) -> Any:
  """Of a gradient: the opponent is at most 1, uniform noise at most so many deviations."""
  return 1 + 3**0.5 * noise


def optimistic(scale: Any, noise: Any) -> optax.GradientTransformationExtraArgs:
  """The paper's steps and the last gradient as the hint."""
  steps = sea_convex(scale * DIAMETER, bound(noise))
  return optimistic_omd(steps, euclidean(box(-1.0, 1.0)))


def unforeseen(scale: Any, noise: Any) -> optax.GradientTransformationExtraArgs:
  """The same steps without a hint."""
  steps = sea_convex(scale * DIAMETER, bound(noise))
  return optimistic_omd(steps, euclidean(box(-1.0, 1.0)), hint="none")


def by_time(scale: Any, noise: Any) -> optax.Schedule:
  """The step size of online gradient descent, D / (G sqrt(t))."""
  return lambda count: scale * DIAMETER / bound(noise) / jnp.sqrt(1.0 + count)


def ogd(scale: Any, noise: Any) -> optax.GradientTransformationExtraArgs:
  """Online gradient descent."""
  return mirror_descent(by_time(scale, noise), euclidean(box(-1.0, 1.0)))


def optimistic_ogd(scale: Any, noise: Any) -> optax.GradientTransformationExtraArgs:
  """The hint, but steps that shrink with time."""
  return optimistic_omd(by_time(scale, noise), euclidean(box(-1.0, 1.0)))


def regret(player: Player, scale: Any, noise: Any, key: jax.Array) -> jax.Array:
  """The regret `[ROUNDS]` of the first of two alike players of x y, who see noisy gradients."""
  start_key, noise_key = jax.random.split(key)
  optimizer = player(scale, noise)
  start = jax.random.uniform(start_key, (2,), minval=-1.0)
  noises = noise * 3**0.5 * jax.random.uniform(noise_key, (ROUNDS, 2), minval=-1.0)

  def turn(carry, errors):
    decisions, states = carry
    slopes = jnp.array([1.0, -1.0]) * decisions[::-1] + errors
    updates, states = jax.vmap(optimizer.update)(slopes, states, decisions)
    return (optax.apply_updates(decisions, updates), states), (decisions[0], slopes[0])

  states = jax.vmap(optimizer.init)(start)
  decisions, slopes = jax.lax.scan(turn, (start, states), noises)[1]
  best = online.losses_at(online.linear(slopes), jnp.array([-1.0, 1.0]))
  return online.static_regret(decisions * slopes, best)


def slope(x: np.ndarray, y: np.ndarray) -> np.ndarray:
  """The exponent of x `[points]` in y `[seeds, points]`, by least squares of the logarithms."""
  x = np.log(x) - np.log(x).mean()
  return np.log(y) @ x / (x @ x)


@functools.partial(jax.jit, static_argnames="player")
def regrets(player: Player, scale: jax.Array, seeds: jax.Array) -> jax.Array:
  """The regret `[seeds, noises, ROUNDS]`, the mean of several games for each seed."""

  def mean(seed, noise):
    keys = jax.random.split(jax.random.key(seed), GAMES)
    return jnp.mean(jax.vmap(lambda key: regret(player, scale, noise, key))(keys), axis=0)

  over_noises = jax.vmap(mean, in_axes=(None, 0))
  return jax.vmap(over_noises, in_axes=(0, None))(seeds, jnp.array(NOISES))


def played(player: Player, scale: float) -> Measure:
  """Regrets at every noise, and how they grow."""

  def measure(seeds):
    found = np.asarray(regrets(player, jnp.asarray(scale), jnp.asarray(seeds)), np.float64)
    found = np.maximum(found, 1e-3)  # where the best fixed decision is beaten
    over_rounds, last = found[:, :, CHECKED - 1], found[:, :, -1]
    no_noise, noisy = slope(CHECKED, over_rounds[:, 0]), slope(CHECKED, over_rounds[:, -1])
    return {
      "log2 of the regret, no noise": np.log2(last[:, 0]),
      "log2 of the regret, noise 1": np.log2(last[:, -1]),
      "mean log regret": np.mean(np.log(last), axis=1),
      "exponent of the rounds, no noise": no_noise,
      "exponent of the rounds, noise 1": noisy,
      "distance from the exponents": np.maximum(abs(no_noise), abs(noisy - 0.5)),
      "curve/log2 regret, no noise, 64 to 4096 rounds": np.log2(over_rounds[:, 0]),
      "curve/log2 regret, noise 0.3, 64 to 4096 rounds": np.log2(over_rounds[:, 2]),
      "curve/log2 regret, noise 1, 64 to 4096 rounds": np.log2(over_rounds[:, -1]),
      "curve/log2 regret, noise 0, 0.1, 0.3, 1": np.log2(last),
    }

  return measure


def arm(player: Player) -> Arm:
  """A setting for each scale of the steps."""
  return {f"{player.__name__}({scale})": played(player, scale) for scale in SCALES}


EXPERIMENT = Experiment(
  methods=("optimistic_omd", "sea_convex", "mirror_descent"),
  family="online",
  setup=(
    "Two alike players of min over x, max over y of x y on [-1, 1], from random starts, who see "
    "gradients with uniform noise of deviation 0 (an adversary that changes slowly) to 1 (mostly "
    "chance). Regret is that of the first player on the noisy losses, a seed the mean of 64 games. "
    "Theory bounds it by a multiple of the root of the summed variances and squared changes: it "
    "grows with the rounds by the exponent 0 without noise and 1/2 with it, where that of online "
    "gradient descent is 1/2. The null takes the same steps without a hint."
  ),
  arms={
    "method": arm(optimistic),
    "baseline": arm(ogd),
    "null": arm(unforeseen),
    "optimistic, steps by time": arm(optimistic_ogd),
  },
  claims=(
    Claim(
      "Without noise the regret hardly grows with the rounds: an exponent at least 1/4 below OGD's",
      *("exponent of the rounds, no noise", "lower", 0.25),
    ),
    Claim(
      "Without noise there is less than half of OGD's regret",
      *("log2 of the regret, no noise", "lower", 1.0),
    ),
    Claim(
      "The exponents at both ends are those of theory, 0 and 1/2, closer by 1/4 than OGD's",
      *("distance from the exponents", "lower", 0.25),
    ),
  ),
  tuned_by="mean log regret",
  tuned="lower",
  seeds=tuple(range(10)),
  minutes=4.0,
)
