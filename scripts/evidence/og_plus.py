"""[225] OG+ converges in games whose noise keeps optimistic gradients from it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxrl import games
from optimizers.og_plus import adaptive_opt_da_plus, og_plus
from optimizers.optimistic_omd import optimistic_omd
from scripts.evidence._experiment import Claim, Experiment, Measure

ROUNDS, NOISE, SIZE, POINTS = 2000, 2.0, 5, 100
RATES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.4)
FACTORS = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
WIDEST = 12.0
FEEDBACK = games.with_noise(
  games.gradients([lambda x, y: x @ y, lambda x, y: -x @ y]), multiplicative=NOISE
)


def played(player: optax.GradientTransformation) -> Measure:
  """How far two such players are from the equilibrium, over time and at the end."""

  @jax.jit
  @jax.vmap
  def distance(seed):
    start_key, key = jax.random.split(jax.random.key(seed))
    start = jax.random.normal(start_key, (2, SIZE))
    x, y = games.play(FEEDBACK, [player, player], tuple(start), ROUNDS, key).answers
    log = jnp.log10(jnp.linalg.norm(jnp.concatenate([x, y], axis=1), axis=1))
    # What has left the range of float32 counts as far, and what is at 0 as near.
    return jnp.clip(jnp.nan_to_num(log, nan=WIDEST), -WIDEST, WIDEST)

  def measure(seeds):
    over_time = np.asarray(distance(jnp.asarray(seeds)))
    every = ROUNDS // POINTS
    return {
      "log10 of the distance": over_time[:, -1],
      "curve/log10 of the distance": over_time[:, every - 1 :: every],
    }

  return measure


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
    "method": {f"og_plus({rate}, 0.4)": played(og_plus(rate, 0.4)) for rate in RATES},
    "baseline": {f"optimistic_omd({rate})": played(optimistic_omd(rate)) for rate in RATES},
    "null": {f"og_plus({rate}, {rate})": played(og_plus(rate, rate)) for rate in RATES},
    "adaptive": {f"adaptive_opt_da_plus({c})": played(adaptive_opt_da_plus(c)) for c in FACTORS},
  },
  claims=(claim("OG+ ends at a tenth of OG's distance from the equilibrium, or nearer"),),
  tuned_by="log10 of the distance",
  tuned="lower",
  seeds=tuple(range(10)),
)
