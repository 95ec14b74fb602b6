"""Twenty steps of exact Gauss-Newton on mini-batches: squared error and cross-entropy.

From github.com/cor3bit/somax, commit 7c107c5a94ce, src/somax/gn/egn.py: plain, with momentum, and
with each of its line searches. Its squared error is (1 / 2B) sum_i (y_i - f_i)^2. It declares its
system symmetric, which JAX 0.4 ignores: LU solves it as it stands.
"""

import jax
import jax.numpy as jnp
import numpy as np
from _official import prepare, save

STEPS, BATCH, FEATURES, HIDDEN = 20, 5, 3, 4
LEARNING_RATE, DAMPING = 0.5, 0.1
OPTIONS = {
  "momentum": {"momentum": 0.6},
  "increase": {"line_search": True, "momentum": 0.6},
  "conservative": {"line_search": True},
  "goldstein": {"line_search": True},
}
BOLD = {"learning_rate": 4.0, "regularizer": 0.01}  # So that line searches have something to do.


def network(params, inputs):
  return jnp.tanh(inputs @ params["first"] + params["bias"]) @ params["second"]


def run(rng, loss_type, classes, targets, **options):
  """Parameters before the first step and after each; the batches in the order of the steps."""
  from somax import EGN

  def predict(params, inputs):
    return network(params, inputs)[..., 0] if loss_type == "mse" else network(params, inputs)

  inputs = rng.normal(size=(STEPS, BATCH, FEATURES)).round(2)
  targets = targets(rng, inputs)
  shapes = {"first": (FEATURES, HIDDEN), "bias": (HIDDEN,), "second": (HIDDEN, classes)}
  params = {name: jnp.asarray(rng.normal(size=shape)) for name, shape in shapes.items()}
  settings = {"learning_rate": LEARNING_RATE, "regularizer": DAMPING, "batch_size": BATCH}
  settings |= options
  solver = EGN(predict, loss_type=loss_type, n_classes=classes, **settings)
  state, path, steps = solver.init_state(params), [params], []
  for batch in zip(inputs, targets, strict=True):
    params, state = solver.update(params, state, *map(jnp.asarray, batch))
    path.append(params)
    steps.append(float(state.stepsize))
  path = jax.tree.map(lambda *x: [*x], *path)
  return {"inputs": inputs, "targets": targets, "params": path, "steps": steps}


def with_options(rng, name):
  """Both losses with the options of that name."""
  options = dict(OPTIONS[name])
  if "line_search" in options:
    options |= {"reset_option": name, **BOLD}
  return {
    "options": options,
    "squared_error": run(rng, "mse", 1, numbers, **options),
    "cross_entropy": run(rng, "ce", 3, one_hot_labels, **options),
  }


def numbers(rng, inputs):
  return (np.sin(inputs.sum(axis=-1)) + 0.1 * rng.normal(size=inputs.shape[:-1])).round(2)


def one_hot_labels(rng, inputs):
  return np.eye(3)[np.argmax(inputs + rng.normal(size=inputs.shape), axis=-1)]


def main():
  prepare("src")
  jax.config.update("jax_enable_x64", True)
  rng = np.random.default_rng(0)
  runs = {
    "squared_error": run(rng, "mse", 1, numbers),
    "cross_entropy": run(rng, "ce", 3, one_hot_labels),
  }
  runs |= {name: with_options(rng, name) for name in OPTIONS}
  save(__file__, {"learning_rate": LEARNING_RATE, "damping": DAMPING, **runs})


main()
