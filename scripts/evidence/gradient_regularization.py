"""[275] Gradient regularization by large forward differences finds sparser solutions."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from optimizers.gradient_regularization import gradient_regularization
from scripts.evidence._experiment import Arm, Claim, Experiment

EXAMPLES, FEATURES, MATTER, MEAN = 20, 50, 3, 2.0
START, RATE, GAMMA = 0.2, 0.001, 0.1
LARGE, TINY = 0.1, 0.001
STEPS, POINTS = 100_000, 50


def problem(seed: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Inputs `[EXAMPLES, FEATURES]` that are not centred, and targets that few features make."""
  inputs = MEAN + jax.random.normal(jax.random.key(seed), (EXAMPLES, FEATURES))
  return inputs, inputs[:, :MATTER].sum(axis=1) / MATTER**0.5


def weights(params: Any) -> jax.Array:
  """Of the linear function that a diagonal linear network is."""
  return params["plus"] ** 2 - params["minus"] ** 2


def trained(optimizer: optax.GradientTransformationExtraArgs) -> Arm:
  """Gradient descent to the end, for each seed's data."""

  @jax.jit
  @jax.vmap
  def solution(seed):
    inputs, targets = problem(seed)

    def loss(params):
      return jnp.mean((inputs @ weights(params) - targets) ** 2) / 2

    def step(carry, _):
      params, state = carry
      gradient = jax.grad(loss)(params)
      updates, state = optimizer.update(gradient, state, params, value_fn=loss)
      return (optax.apply_updates(params, updates), state), None

    def epoch(carry, _):
      carry, _ = jax.lax.scan(step, carry, length=STEPS // POINTS)
      norm = jnp.log(jnp.sum(jnp.abs(weights(carry[0]))))
      return carry, (norm, jnp.log10(loss(carry[0])))

    start = {name: jnp.full(FEATURES, START) for name in ("plus", "minus")}
    _, (norms, losses) = jax.lax.scan(epoch, (start, optimizer.init(start)), length=POINTS)
    return {
      "log of the l1 norm": norms[-1],
      "log10 of the loss": losses[-1],
      "curve/log of the l1 norm": norms,
      "curve/log10 of the loss": losses,
    }

  return {f"sgd({RATE})": lambda seeds: solution(jnp.asarray(seeds))}


def regularized(method: str, eps: float = LARGE) -> Arm:
  """With the same strength for all."""
  element = gradient_regularization(GAMMA, eps, method=method)
  return trained(optax.with_extra_args_support(optax.chain(element, optax.sgd(RATE))))


EXPERIMENT = Experiment(
  methods=("gradient_regularization",),
  family="sharpness",
  setup=(
    "A diagonal linear network, w = u^2 - v^2 with u = v = 0.2 at the start: 20 examples, 50 "
    "features from N(2, 1), of which three matter. Everything is trained to the end, by 100,000 "
    "steps of gradient descent with a rate of 0.001, with gamma = 0.1 and, where there are "
    "differences, steps of 0.1. That features are not centred is essential: where they were, the "
    "penalty acted most on those that matter, and the order was the opposite. The null has "
    "forward differences with steps of 0.001, compared with the exact gradient of the penalty."
  ),
  arms={
    "forward": regularized("forward"),
    "backward": regularized("backward"),
    "exact": regularized("exact"),
    "forward, tiny steps": regularized("forward", TINY),
    "without": trained(optax.with_extra_args_support(optax.sgd(RATE))),
  },
  claims=tuple(
    Claim(
      f"Forward differences lower the l1 norm of the solution, by more than 1 %, below {other}",
      *("log of the l1 norm", "lower", 0.01),
      method="forward",
      baseline=arm,
      null="forward, tiny steps",
      null_baseline="exact",
    )
    for arm, other in (
      ("backward", "that of backward ones"),
      ("exact", "that of the exact gradient"),
      ("without", "that without a penalty"),
    )
  ),
  tuned_by="log of the l1 norm",
  tuned="lower",
)
