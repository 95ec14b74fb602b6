"""[234] Variance reduction converges with a constant rate, where stochastic gradients stall."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxrl.oracle import Oracle
from optimizers.saga import saga
from optimizers.svrg import svrg
from scripts.evidence._experiment import Arm, Claim, Experiment, Measure

ROWS, SIZE, PASSES, NOISE = 60, 8, 50, 1.0
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


@functools.cache
def compiled(method: str) -> Callable[..., jax.Array]:
  """The excess loss over time, of seeds, by a method with a rate that may fall."""
  element = {"SVRG": svrg(batches=1, every=CYCLE - 1), "SAGA": saga(ROWS), "SGD": optax.identity()}
  steps = PASSES // 5 * CYCLE if method == "SVRG" else PASSES * ROWS

  def index_of(count, row):
    """The pass of SVRG is one step on all rows; its cycle takes the gradients of 5 passes."""
    whole = jnp.arange(ROWS)
    return jnp.where(count % CYCLE == 0, whole, row) if method == "SVRG" else row[None]

  def excess(seed, noise, rate, falls):
    rows, targets = problem(seed, noise)
    solution = jnp.linalg.solve(rows.T @ rows, rows.T @ targets)
    start = jnp.zeros(SIZE)
    sgd = optax.sgd(lambda count: rate / (1 + falls * count / (5 * ROWS)))
    optimizer = optax.with_extra_args_support(optax.chain(element[method], sgd))

    def step(carry, inputs):
      params, state = carry
      value_fn = loss_of(rows, targets, params, index_of(*inputs))
      gradient = jax.grad(value_fn)(params)
      updates, state = optimizer.update(gradient, state, params, value_fn=value_fn)
      params = jnp.asarray(optax.apply_updates(params, updates))
      return (params, state), jnp.mean((rows @ (params - solution)) ** 2) / 2

    drawn = jax.random.randint(jax.random.key(seed + 1000), (steps,), 0, ROWS)
    return jax.lax.scan(step, (start, optimizer.init(start)), (jnp.arange(steps), drawn))[1]

  return jax.jit(jax.vmap(excess, (0, None, None, None)))


def descended(method: str, noise: float, rate: float, falls: bool = False) -> Measure:
  """The excess loss after as many gradients of rows as PASSES over the data have."""

  def measure(seeds):
    excess = compiled(method)(jnp.asarray(seeds), noise, rate, float(falls))
    over_time = np.log10(np.maximum(np.asarray(excess), 1e-14))
    shown = over_time[:, np.linspace(0, over_time.shape[1] - 1, PASSES).astype(int)]
    return {"log10 of the excess loss": over_time[:, -1], "curve/log10 of the excess loss": shown}

  return measure


def arm(method: str, noise: float) -> Arm:
  """A setting for each rate; half of those without variance reduction fall."""
  if method != "SGD":
    return {f"{method}, {rate}": descended(method, noise, rate) for rate in RATES}
  constant = {f"SGD, {rate}": descended(method, noise, rate) for rate in RATES[::2]}
  falling = {
    f"SGD, {rate} / (1 + passes / 5)": descended(method, noise, rate, True) for rate in RATES[1::2]
  }
  return {**constant, **falling}


EXPERIMENT = Experiment(
  methods=("svrg", "saga"),
  family="stochastic",
  setup=(
    "Least squares of 60 rows and 8 unknowns with noise, a row a step; every method may take "
    "the gradients of 50 passes over the rows. Rates are tuned on other problems; half of the "
    "baseline's fall. In the null the rows have no noise, so that all of their gradients vanish "
    "at the solution and there is no variance to reduce."
  ),
  arms={
    "SVRG": arm("SVRG", NOISE),
    "SAGA": arm("SAGA", NOISE),
    "SGD": arm("SGD", NOISE),
    "SVRG, no noise": arm("SVRG", 0.0),
    "SAGA, no noise": arm("SAGA", 0.0),
    "SGD, no noise": arm("SGD", 0.0),
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
  tuning_seeds=tuple(range(100, 108)),
  minutes=2.0,
)
