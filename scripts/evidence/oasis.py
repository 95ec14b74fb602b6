"""[219] OASIS without tuning keeps up with a tuned Adam on badly scaled features."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optimizers.oasis import oasis
from scripts.evidence._experiment import Arm, Claim, Experiment, Measure

EXAMPLES, FEATURES, STEPS, DECAY = 500, 20, 200, 1e-3
RATES = (0.003, 0.01, 0.03, 0.1, 0.3)


def problem(key: jax.Array) -> Callable[[jax.Array], jax.Array]:
  """Logistic regression with features of scales from 0.01 to 10, whose labels flip by chance."""
  first, second, third = jax.random.split(key, 3)
  scales = jnp.logspace(-2, 1, FEATURES)
  features = jax.random.normal(first, (EXAMPLES, FEATURES))
  truth = jax.random.normal(second, (FEATURES,))
  signs = jnp.sign(features @ truth + jax.random.logistic(third, (EXAMPLES,)))
  inputs = features * scales[None]
  return lambda w: (
    jnp.mean(jnp.logaddexp(0, -signs * (inputs @ w))) + DECAY / 2 * jnp.sum((scales * w) ** 2)
  )


def minimum(loss: Callable[[jax.Array], jax.Array]) -> jax.Array:
  """By Newton's method."""

  def step(_, w):
    return w - jnp.linalg.solve(jax.hessian(loss)(w), jax.grad(loss)(w))

  return loss(jax.lax.fori_loop(0, 15, step, jnp.zeros(FEATURES)))


def descended(optimizer: Any) -> Measure:
  """How far the loss of all data is above its minimum, along the way."""
  optimizer = optax.with_extra_args_support(optimizer)

  @jax.jit
  def run(seed):
    loss = problem(jax.random.key(seed))
    least = minimum(loss)

    def step(carry, _):
      w, state = carry
      updates, state = optimizer.update(jax.grad(loss)(w), state, w, value_fn=loss)
      w = w + updates
      return (w, state), jnp.log10(jnp.maximum(loss(w) - least, 1e-7))

    start = jnp.zeros(FEATURES)
    return jax.lax.scan(step, (start, optimizer.init(start)), length=STEPS)[1]

  def measure(seeds):
    over_time = np.stack([run(seed) for seed in seeds])
    return {"log10 of the gap": over_time[:, -1], "curve/log10 of the gap": over_time}

  return measure


def arm(make: Callable[[float], Any]) -> Arm:
  """A setting for each learning rate."""
  return {f"{make.__name__}({rate})": descended(make(rate)) for rate in RATES}


def adaptive(rate: float) -> Any:
  """The method, whose first rate should not matter."""
  return oasis(rate, alpha=1e-5)


def unscaled(rate: float) -> Any:
  """The rule for the step size without the Hessian's diagonal."""
  return oasis(rate, b2=1.0, warm_start=0, alpha=1.0)


def adam(rate: float) -> Any:
  """The baseline."""
  return optax.adam(rate)


EXPERIMENT = Experiment(
  methods=("oasis",),
  family="second_order",
  setup=(
    "Logistic regression on all of 500 examples with 20 features of scales from 0.01 to 10; 200 "
    "steps, of which one of OASIS takes a gradient and a Hessian-vector product more than one of "
    "Adam. Adam's learning rate is tuned; the method's first rate goes through the same values. "
    "The null is its step size rule without the diagonal."
  ),
  arms={"method": arm(adaptive), "baseline": arm(adam), "null": arm(unscaled)},
  claims=(
    Claim(
      "As many steps end nearer to the minimum than those of tuned Adam",
      *("log10 of the gap", "lower"),
    ),
  ),
  tuned_by="log10 of the gap",
  tuned="lower",
)
