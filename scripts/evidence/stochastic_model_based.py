"""[250] Better models of the loss than its tangent let step sizes be wrong by orders."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxrl.oracle import Oracle
from optimizers.stochastic_model_based import stochastic_model_based
from scripts.evidence._experiment import Claim, Experiment, Measure

ROWS, SIZE, PASSES = 30, 10, 60
RATES = 10.0 ** np.arange(-4, 2.25, 0.5)
GOAL = 1e-2
DECADES = "decades of rates"


def succeeds(make: Callable[[float], optax.GradientTransformation]) -> Measure:
  """Over how many decades of step sizes robust phase retrieval succeeds."""

  def loss(seed, rate):
    keys = jax.random.split(jax.random.key(seed), 4)
    rows = jax.random.normal(keys[0], (ROWS, SIZE))
    signal, start = (jax.random.normal(key, (SIZE,)) for key in keys[1:3])
    signal, start = signal / jnp.linalg.norm(signal), start / jnp.linalg.norm(start)
    targets = (rows @ signal) ** 2
    optimizer = optax.with_extra_args_support(make(rate))

    def step(carry, row):
      params, state = carry
      outputs = lambda x: ((rows[row] @ x) ** 2 - targets[row])[None]  # noqa: E731
      absolute = lambda z: jnp.mean(jnp.abs(z))  # noqa: E731
      value_fn = Oracle(lambda x: absolute(outputs(x)), params, outputs=outputs, loss_of=absolute)
      value, gradient = jax.value_and_grad(value_fn)(params)
      updates, state = optimizer.update(
        gradient, state, params, value=value, grad=gradient, value_fn=value_fn
      )
      return (optax.apply_updates(params, updates), state), None

    drawn = jax.random.randint(keys[3], (PASSES * ROWS,), 0, ROWS)
    (params, _), _ = jax.lax.scan(step, (start, optimizer.init(start)), drawn)
    mean = lambda x: jnp.mean(jnp.abs((rows @ x) ** 2 - targets))  # noqa: E731
    return mean(params) / mean(start)

  losses = jax.jit(jax.vmap(jax.vmap(loss, (None, 0)), (0, None)))

  def measure(seeds):
    reached = np.asarray(losses(jnp.asarray(seeds), jnp.asarray(RATES))) < GOAL
    return {DECADES: reached.sum(axis=1) / 2, "curve/success by rate": reached.astype(float)}

  return measure


def model(name: str, **options: Any) -> Callable[[float], optax.GradientTransformation]:
  """The method with one of its models, by rate."""
  return lambda rate: stochastic_model_based(rate, name, **options)


EXPERIMENT = Experiment(
  methods=("stochastic_model_based",),
  family="stochastic",
  setup=(
    "Robust phase retrieval, the mean of |<a, x>^2 - b| over 30 rows without noise and 10 "
    "unknowns, from a random start on the unit sphere, a row a step for 60 passes. Thirteen step "
    "sizes from 0.0001 to 100, constant, two a decade; one succeeds if it brings the loss to a "
    "hundredth of that at the start. The null is the truncated model with a bound that is never "
    "reached."
  ),
  arms={
    "prox-linear": {"every rate": succeeds(model("prox_linear"))},
    "prox-point": {"every rate": succeeds(model("prox_point", linearizations=4))},
    "truncated": {"every rate": succeeds(model("truncated"))},
    "subgradient": {"every rate": succeeds(optax.sgd)},
    "null": {"every rate": succeeds(model("truncated", lower=-1e9))},
  },
  claims=tuple(
    Claim(
      f"The {name} model succeeds over two decades of step sizes more than subgradients",
      *(DECADES, "higher"),
      margin=2.0,
      method=name,
      baseline="subgradient",
    )
    for name in ("prox-linear", "prox-point", "truncated")
  ),
  tuned_by=DECADES,
  tuned="higher",
  minutes=2.0,
)
