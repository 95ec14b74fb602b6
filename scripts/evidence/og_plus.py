"""[225] OG+ converges in games whose noise keeps optimistic gradients from it."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxrl import games
from optimizers.og_plus import adaptive_opt_da_plus, og_plus
from optimizers.optimistic_omd import optimistic_omd
from scripts.evidence._experiment import Arm, Claim, Experiment, Measure

ROUNDS, NOISE, SIZE, POINTS = 2000, 2.0, 5, 100
RATES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.4)
FACTORS = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
WIDEST, LONG = 12.0, 0.4
FEEDBACK = games.with_noise(
  games.gradients([lambda x, y: x @ y, lambda x, y: -x @ y]), multiplicative=NOISE
)


Player = Callable[[Any], optax.GradientTransformation]


def separated(rate: Any) -> optax.GradientTransformation:
  """OG+ with a long extrapolation."""
  return og_plus(rate, LONG)


def together(rate: Any) -> optax.GradientTransformation:
  """OG+ without what it is about."""
  return og_plus(rate, rate)


@functools.partial(jax.jit, static_argnums=0)
@functools.partial(jax.vmap, in_axes=(None, 0, None))
def distance(player: Player, seed: Any, rate: Any) -> jax.Array:
  """How far two such players are from the equilibrium, after each round."""
  start_key, key = jax.random.split(jax.random.key(seed))
  start = jax.random.normal(start_key, (2, SIZE))
  x, y = games.play(FEEDBACK, [player(rate)] * 2, tuple(start), ROUNDS, key).answers
  log = jnp.log10(jnp.linalg.norm(jnp.concatenate([x, y], axis=1), axis=1))
  # What has left the range of float32 counts as far, and what is at 0 as near.
  return jnp.clip(jnp.nan_to_num(log, nan=WIDEST), -WIDEST, WIDEST)


def arm(player: Player, rates: tuple[float, ...]) -> Arm:
  """A setting for each rate."""

  def measured(rate) -> Measure:
    def measure(seeds):
      over_time = np.asarray(distance(player, jnp.asarray(seeds), rate))
      every = ROUNDS // POINTS
      return {
        "log10 of the distance": over_time[:, -1],
        "curve/log10 of the distance": over_time[:, every - 1 :: every],
      }

    return measure

  return {f"{player.__name__}({rate})": measured(rate) for rate in rates}


claim = functools.partial(Claim, statistic="log10 of the distance", direction="lower", margin=1.0)

EXPERIMENT = Experiment(
  methods=("og_plus",),
  family="online",
  setup=(
    "Two players with five actions each and losses x'y and -x'y, over 2000 rounds; every entry of "
    "a gradient is multiplied by 1 + 2 xi, xi normal. OG+ has an extrapolation of 0.4, and, as OG "
    "for its one rate, six rates. The null is OG+ with both rates the same. OptDA+ that adapts "
    "stands beside them without a claim. Distances are those of the base points, in float32."
  ),
  arms={
    "method": arm(separated, RATES),
    "baseline": arm(optimistic_omd, RATES),
    "null": arm(together, RATES),
    "adaptive": arm(adaptive_opt_da_plus, FACTORS),
  },
  claims=(claim("OG+ ends at a tenth of OG's distance from the equilibrium, or nearer"),),
  tuned_by="log10 of the distance",
  tuned="lower",
  seeds=tuple(range(10)),
)
