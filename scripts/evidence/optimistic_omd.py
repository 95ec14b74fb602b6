"""[11] Optimistic mirror descent profits from losses that change slowly."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optimizers.mirror_maps import entropy
from optimizers.optimistic_omd import optimistic_omd
from scripts.evidence._experiment import Arm, Claim, Experiment, Measure

EXPERTS, ROUNDS, TURN, NOISE = 8, 2000, 0.01, 0.1
RATES = (0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
SLOW, IID = "slow", "independent"


def losses(seed: jax.Array, kind: str) -> jax.Array:
  """Each round's loss of every expert, `[ROUNDS, EXPERTS]`.

  They turn by a hundredth of a radian a round, each expert at a phase of its own, under a
  little noise; or they are drawn anew every round.
  """
  phase_key, noise_key = jax.random.split(jax.random.key(seed))
  noise = jax.random.normal(noise_key, (ROUNDS, EXPERTS))
  if kind == IID:
    return noise
  phase = jax.random.uniform(phase_key, (1, EXPERTS), maxval=2 * jnp.pi)
  return jnp.cos(TURN * jnp.arange(ROUNDS)[:, None] + phase) + NOISE * noise


def optimistic(rate: float) -> Callable[[jax.Array], jax.Array]:
  """The decisions of optimistic mirror descent with the entropy map."""
  optimizer = optimistic_omd(rate, mirror=entropy())

  def decisions(rounds):
    def play(carry, loss):
      x, state = carry
      updates, state = optimizer.update(loss, state, x)
      return (optax.apply_updates(x, updates), state), x

    start = jnp.full(EXPERTS, 1 / EXPERTS)
    return jax.lax.scan(play, (start, optimizer.init(start)), rounds)[1]

  return decisions


def hedge(rate: float) -> Callable[[jax.Array], jax.Array]:
  """The decisions of Hedge, which is mirror descent with the entropy map and no hint."""

  def decisions(rounds):
    before = jnp.cumsum(rounds, axis=0) - rounds
    return jax.nn.softmax(-rate * before, axis=-1)

  return decisions


def played(player: Callable[[jax.Array], jax.Array], kind: str) -> Measure:
  """The regret of a player against the best expert in hindsight, over time and at the end."""

  @jax.jit
  @jax.vmap
  def regret(seed):
    rounds = losses(seed, kind)
    own = jnp.cumsum(jnp.sum(player(rounds) * rounds, axis=-1))
    return own - jnp.min(jnp.cumsum(rounds, axis=0), axis=-1)

  def measure(seeds):
    over_time = np.asarray(regret(jnp.asarray(seeds)))
    return {"regret": over_time[:, -1], f"curve/regret, {kind} losses": over_time}

  return measure


def arm(player: Callable[..., Callable[[jax.Array], jax.Array]], kind: str) -> Arm:
  """A setting for each step size."""
  return {f"{player.__name__}({rate})": played(player(rate), kind) for rate in RATES}


EXPERIMENT = Experiment(
  methods=("optimistic_omd",),
  family="online",
  setup=(
    "Eight experts over 2000 rounds, whose losses turn by 0.01 radians a round, each at its own "
    "phase, with noise of 0.1; step sizes tuned on other streams. The null plays losses that are "
    "drawn anew every round, where the last loss says nothing of the next."
  ),
  arms={
    "method": arm(optimistic, SLOW),
    "baseline": arm(hedge, SLOW),
    "null": arm(optimistic, IID),
    "Hedge, independent losses": arm(hedge, IID),
  },
  claims=(
    Claim(
      "Slowly turning losses: less regret than Hedge",
      *("regret", "lower"),
      null_baseline="Hedge, independent losses",
    ),
  ),
  tuned_by="regret",
  tuned="lower",
  seeds=tuple(range(20)),
)
