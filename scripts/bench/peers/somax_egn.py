"""Exact Gauss-Newton of python-somax 0.0.1: `somax_egn.py squared_error|cross_entropy BATCH`.

Needs python-somax with the JAX of its time: an environment from requirements-oracles.txt.
"""

import sys

import jax
import jax.numpy as jnp

from scripts.bench import _gauss_newton
from scripts.bench.peers import _worker


def main():
  """Serves the step that the command line names."""
  from somax import EGN  # pyright: ignore[reportMissingImports]

  loss, size = sys.argv[1], int(sys.argv[2])
  batch = _gauss_newton.batch(loss, size)
  outputs = batch["targets"].shape[-1]
  params = [
    (jnp.asarray(kernel), jnp.asarray(bias)) for kernel, bias in _gauss_newton.weights(outputs)
  ]

  def predict(params, x):
    for kernel, bias in params[:-1]:
      x = jnp.tanh(x @ kernel + bias)
    x = x @ params[-1][0] + params[-1][1]
    return x[..., 0] if outputs == 1 else x

  solver = EGN(
    predict,
    loss_type={"squared_error": "mse", "cross_entropy": "ce"}[loss],
    learning_rate=_gauss_newton.LEARNING_RATE,
    regularizer=_gauss_newton.DAMPING,
    batch_size=size,
    n_classes=outputs,
  )
  inputs, targets = jnp.asarray(batch["inputs"]), jnp.asarray(batch["targets"])
  targets = targets[:, 0] if outputs == 1 else targets
  update = jax.jit(solver.update)
  latest = [(params, solver.init_state(params))]

  def step():
    latest[0] = tuple(update(*latest[0], inputs, targets))

  def finish():
    jax.block_until_ready(latest[0][0])

  step()
  about = f"python-somax 0.0.1, jax {jax.__version__}, {jax.default_backend()}"
  _worker.serve(about, step, finish, _gauss_newton.STEPS)


if __name__ == "__main__":
  main()
