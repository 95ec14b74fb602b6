"""[223] The edge of stability of SAM lies below that of gradient descent, where it is predicted."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxrl import data
from jaxrl.diagnostics.hessian_spectrum import hessian_extremes
from optimizers.sam import sam
from scripts.evidence._experiment import Arm, Claim, Experiment

EXAMPLES, WIDTHS = 200, (64, 32, 32, 10)
RATE, RADII = 0.1, (0.02, 0.05)
EDGE = 2 / RATE  # of gradient descent
STEPS, EVERY, PLATEAU, ORDER = 2000, 50, 0.5, 12


def draw(seed: jax.Array) -> Any:
  """The weights and biases of a multilayer perceptron."""
  keys = jax.random.split(jax.random.key(seed), len(WIDTHS) - 1)
  return [
    {"kernel": jax.random.normal(key, (n, m)) / n**0.5, "bias": jnp.zeros(m)}
    for key, n, m in zip(keys, WIDTHS, WIDTHS[1:], strict=False)
  ]


def outputs(params: Any, inputs: jax.Array) -> jax.Array:
  """`[B, 10]` of images `[B, 64]`."""
  *hidden, last = params
  for layer in hidden:
    inputs = jnp.tanh(inputs @ layer["kernel"] + layer["bias"])
  return inputs @ last["kernel"] + last["bias"]


@functools.cache
def mean_loss() -> Any:
  """Half the squared error of the first digits, as a function of the parameters."""
  split = data.in_memory(data.load("digits").splits["train"])
  inputs = jnp.asarray(split["inputs"][:EXAMPLES]).reshape(EXAMPLES, -1)
  targets = jax.nn.one_hot(split["labels"][:EXAMPLES], WIDTHS[-1])
  return lambda params: jnp.mean(jnp.sum((outputs(params, inputs) - targets) ** 2, axis=1)) / 2


@functools.cache
def top_eigenvalues(rho: float, seeds: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
  """The largest eigenvalue of the Hessian along the way, and the loss, `[seeds, points]`."""
  loss = mean_loss()
  descent = optax.sgd(RATE)
  optimizer = optax.chain(sam(rho, normalize="none"), descent) if rho else descent
  optimizer = optax.with_extra_args_support(optimizer)

  @jax.jit
  @jax.vmap
  def run(seed):
    def step(carry, _):
      params, state = carry
      updates, state = optimizer.update(jax.grad(loss)(params), state, params, value_fn=loss)
      return (optax.apply_updates(params, updates), state), None

    def part(carry, _):
      carry, _ = jax.lax.scan(step, carry, length=EVERY)
      found = hessian_extremes(loss, carry[0], jax.random.key(0), order=ORDER)
      return carry, (found.largest[0], loss(carry[0]))

    params = draw(seed)
    return jax.lax.scan(part, (params, optimizer.init(params)), length=STEPS // EVERY)[1]

  eigenvalues, losses = run(jnp.asarray(seeds))
  return np.asarray(eigenvalues), np.asarray(losses)


def edge(rho: float) -> float:
  """The largest eigenvalue at which SAM is stable, from `RATE * (x + rho * x**2) = 2`."""
  return ((1 + 8 * rho / RATE) ** 0.5 - 1) / (2 * rho)


def compared(rho: float, predicted: float, curves: bool = False) -> Arm:
  """How far from a prediction the plateau of the largest eigenvalue lies, in octaves."""

  def measure(seeds: Sequence[int]):
    eigenvalues, losses = top_eigenvalues(rho, tuple(seeds))
    settled = eigenvalues[:, -int(PLATEAU * eigenvalues.shape[1]) :]
    plateau = np.exp(np.mean(np.log(settled), axis=1))
    found = {
      "octaves from the prediction": np.abs(np.log2(plateau / predicted)),
      "plateau": plateau,
    }
    if curves:
      found |= {"curve/top eigenvalue": eigenvalues, "curve/loss": losses}
    return found

  return {f"predicted {predicted:.1f}": measure}


def arms() -> dict[str, Arm]:
  """Every run against both predictions."""
  found = {}
  for rho in RADII:
    found[f"USAM {rho}"] = compared(rho, edge(rho), curves=True)
    found[f"USAM {rho}, GD's prediction"] = compared(rho, EDGE)
    found[f"GD, prediction of USAM {rho}"] = compared(0.0, edge(rho))
  return {**found, "GD": compared(0.0, EDGE, curves=True)}


EXPERIMENT = Experiment(
  methods=("sam",),
  family="sharpness",
  setup=(
    "Half the squared error of 200 digits, full batch; tanh layers of 32 and 32; 2000 steps with "
    "a learning rate of 0.1 of `sam(normalize='none')`. The plateau is the geometric mean of the "
    "Hessian's largest eigenvalue over the second half, once every 50 steps. Predictions: 20 for "
    "gradient descent, where 0.1 x = 2; for SAM, where 0.1 (x + rho x^2) = 2. The null is the "
    "plateau of gradient descent."
  ),
  arms=arms(),
  claims=tuple(
    Claim(
      f"With rho = {rho} the plateau is nearer to SAM's edge, {edge(rho):.1f}, than to 2 / rate",
      *("octaves from the prediction", "lower"),
      method=f"USAM {rho}",
      baseline=f"USAM {rho}, GD's prediction",
      null=f"GD, prediction of USAM {rho}",
      null_baseline="GD",
    )
    for rho in RADII
  ),
  tuned_by="octaves from the prediction",
  tuned="lower",
)
