"""[338] Exact Gauss-Newton needs fewer steps than Adam on a small regression network."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxrl.oracle import Oracle
from optimizers.egn import egn
from scripts.evidence._experiment import Arm, Claim, Experiment, Measure

EXAMPLES, BATCH, INPUTS, HIDDEN, STEPS = 512, 32, 5, 32, 300
RATES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)


def network(params: Any, inputs: jax.Array) -> jax.Array:
  """Two hidden layers with tanh, one output."""
  for kernel, bias in params[:-1]:
    inputs = jnp.tanh(inputs @ kernel + bias[None])
  return inputs @ params[-1][0] + params[-1][1][None]


def drawn(key: jax.Array) -> Any:
  """Weights of the network."""
  sizes = ((INPUTS, HIDDEN), (HIDDEN, HIDDEN), (HIDDEN, 1))
  keys = jax.random.split(key, len(sizes))
  return [
    (jax.random.normal(k, shape) / shape[0] ** 0.5, jnp.zeros(shape[1]))
    for k, shape in zip(keys, sizes, strict=True)
  ]


def trained(optimizer: Any, steps: int) -> Measure:
  """The mean squared error of all examples, along the way."""
  optimizer = optax.with_extra_args_support(optimizer)

  @jax.jit
  def run(seed):
    first, second, third = jax.random.split(jax.random.key(seed), 3)
    inputs = jax.random.normal(first, (EXAMPLES, INPUTS))
    targets = jnp.sin(2 * inputs[:, :1]) + inputs[:, 1:2] * inputs[:, 2:3]

    def error(params):
      return jnp.mean((network(params, inputs) - targets) ** 2)

    def step(carry, key):
      params, state = carry
      rows = jax.random.choice(key, EXAMPLES, (BATCH,), replace=False)

      def outputs(params, other=None):
        return network(params, inputs[rows] if other is None else other)

      def loss_of(outputs):
        return jnp.mean((outputs - targets[rows]) ** 2) / 2

      value_fn = Oracle(
        lambda p: loss_of(outputs(p)),
        params,
        outputs=outputs,
        loss_of=loss_of,
        batch={"inputs": inputs[rows]},
      )
      updates, state = optimizer.update(
        jax.grad(value_fn)(params), state, params, value_fn=value_fn
      )
      params = optax.apply_updates(params, updates)
      return (params, state), jnp.log10(error(params))

    params = drawn(second)
    keys = jax.random.split(third, steps)
    return jax.lax.scan(step, (params, optimizer.init(params)), keys)[1]

  def measure(seeds):
    over_time = np.stack([run(seed) for seed in seeds])
    last = np.mean(over_time[:, -10:], axis=1)
    return {
      "log10 of the error": last,
      "curve/log10 of the error": over_time[:, :: max(1, steps // STEPS)],
    }

  return measure


def arm(make: Callable[[float], Any], steps: int = STEPS) -> Arm:
  """A setting for each learning rate."""
  return {f"{make.__name__}({rate})": trained(make(rate), steps) for rate in RATES}


def gauss_newton(rate: float) -> Any:
  """The method."""
  return egn(rate, damping=0.1, independent=True)


def flat(rate: float) -> Any:
  """The method at a damping beside which the curvature is nothing: gradient descent."""
  return egn(rate * 1e3, damping=1e3, independent=True)


def adam(rate: float) -> Any:
  """The baseline."""
  return optax.adam(rate)


EXPERIMENT = Experiment(
  methods=("egn",),
  family="second_order",
  setup=(
    "A perceptron with two hidden layers of 32 and tanh learns a smooth function of five numbers "
    "from 512 examples in batches of 32. Gauss-Newton makes 300 steps, Adam 300 and 3000; learning "
    "rates are tuned for each. The null has so large a damping that it is gradient descent."
  ),
  arms={
    "method": arm(gauss_newton),
    "baseline": arm(adam, 10 * STEPS),
    "Adam, 300 steps": arm(adam),
    "null": arm(flat),
  },
  claims=(
    Claim(
      "In as many steps its error is lower than Adam's",
      *("log10 of the error", "lower"),
      baseline="Adam, 300 steps",
    ),
    Claim(
      "Its error is lower than Adam's after ten times as many steps",
      *("log10 of the error", "lower"),
    ),
  ),
  tuned_by="log10 of the error",
  tuned="lower",
)
