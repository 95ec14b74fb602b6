"""[234] Variance reduction converges with a constant rate, where stochastic gradients stall."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxrl.oracle import Oracle
from optimizers.saga import saga
from optimizers.svrg import svrg
from scripts.evidence._experiment import Arm, Claim, Experiment, Measure

ROWS, SIZE, PASSES, NOISE = 100, 10, 60, 1.0
RATES = (0.0025, 0.005, 0.01, 0.02, 0.04, 0.08)
CYCLE = 2 * ROWS + 1


def problem(seed: jax.Array, noise: float) -> tuple[jax.Array, jax.Array]:
  """Rows a_i and targets b_i of the losses (a_i w - b_i)^2 / 2."""
  rows_key, truth_key, noise_key = jax.random.split(jax.random.key(seed), 3)
  rows = jax.random.normal(rows_key, (ROWS, SIZE)) * jnp.linspace(0.5, 1.0, SIZE)[None]
  targets = rows @ jax.random.normal(truth_key, (SIZE,))
  return rows, targets + noise * jax.random.normal(noise_key, (ROWS,))


def loss_of(rows: jax.Array, targets: jax.Array, params: jax.Array, index: jax.Array) -> Oracle:
  """The mean loss of the rows `index`."""

  def losses(params):
    return (rows[index] @ params - targets[index]) ** 2 / 2

  return Oracle(lambda w: jnp.mean(losses(w)), params, losses=losses, batch={"index": index})


def with_saga() -> tuple[optax.GradientTransformation, int, Callable[[Any, Any], Any]]:
  """SAGA, a row a step."""
  return saga(ROWS), PASSES * ROWS, lambda step, row: row[None]


def with_svrg() -> tuple[optax.GradientTransformation, int, Callable[[Any, Any], Any]]:
  """SVRG, whose passes are one step on all rows; a cycle takes 5 passes' worth of gradients."""

  def index(step, row):
    return jnp.where(step % CYCLE == 0, jnp.arange(ROWS), row)

  return svrg(batches=1, every=CYCLE - 1), PASSES // 5 * CYCLE, index


def without() -> tuple[optax.GradientTransformation, int, Callable[[Any, Any], Any]]:
  """Stochastic gradients, a row a step."""
  return optax.identity(), PASSES * ROWS, lambda step, row: row[None]


def descended(method: Callable[..., Any], rate: Any, noise: float) -> Measure:
  """The excess loss after as many gradients of rows as PASSES over the data have."""
  element, steps, index_of = method()
  optimizer = optax.with_extra_args_support(optax.chain(element, optax.sgd(rate)))

  @jax.jit
  @jax.vmap
  def excess(seed):
    rows, targets = problem(seed, noise)
    solution = jnp.linalg.lstsq(rows, targets)[0]
    start = jnp.zeros(SIZE)

    def step(carry, inputs):
      params, state = carry
      value_fn = loss_of(rows, targets, params, index_of(*inputs))
      gradient = jax.grad(value_fn)(params)
      updates, state = optimizer.update(gradient, state, params, value_fn=value_fn)
      params = optax.apply_updates(params, updates)
      return (params, state), jnp.mean((rows @ (params - solution)) ** 2) / 2

    drawn = jax.random.randint(jax.random.key(seed + 1000), (steps,), 0, ROWS)
    return jax.lax.scan(step, (start, optimizer.init(start)), (jnp.arange(steps), drawn))[1]

  def measure(seeds):
    over_time = np.log10(np.maximum(np.asarray(excess(jnp.asarray(seeds))), 1e-14))
    shown = over_time[:, np.linspace(0, steps - 1, PASSES).astype(int)]
    return {"log10 of the excess loss": over_time[:, -1], "curve/log10 of the excess loss": shown}

  return measure


def arm(method: Callable[..., Any], noise: float) -> Arm:
  """A setting for each rate."""
  return {f"{method.__name__}, {rate}": descended(method, rate, noise) for rate in RATES}


def plain(noise: float) -> Arm:
  """As many settings without variance reduction, half of them with rates that fall."""
  arm = {}
  for rate in RATES[::2]:
    falling = lambda t, rate=rate: rate / (1 + t / (5 * ROWS))  # noqa: E731
    arm[f"sgd, {rate}"] = descended(without, rate, noise)
    arm[f"sgd, {rate} / (1 + passes / 5)"] = descended(without, falling, noise)
  return arm


EXPERIMENT = Experiment(
  methods=("svrg", "saga"),
  family="stochastic",
  setup=(
    "Least squares of 100 rows and 10 unknowns with noise, a row a step; every method may take "
    "the gradients of 60 passes over the rows. Rates are tuned on other problems; half of the "
    "baseline's fall. In the null the rows have no noise, so that all of their gradients vanish "
    "at the solution and there is no variance to reduce."
  ),
  arms={
    "SVRG": arm(with_svrg, NOISE),
    "SAGA": arm(with_saga, NOISE),
    "SGD": plain(NOISE),
    "SVRG, no noise": arm(with_svrg, 0.0),
    "SAGA, no noise": arm(with_saga, 0.0),
    "SGD, no noise": plain(0.0),
  },
  claims=tuple(
    Claim(
      f"{name}'s excess loss is less than a tenth of that of stochastic gradients",
      *("log10 of the excess loss", "lower"),
      margin=1.0,
      method=name,
      baseline="SGD",
      null=f"{name}, no noise",
      null_baseline="SGD, no noise",
    )
    for name in ("SVRG", "SAGA")
  ),
  tuned_by="log10 of the excess loss",
  tuned="lower",
  minutes=2.0,
)
