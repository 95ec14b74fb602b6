"""Thirty steps of FOSI on a small network, each kind with its base optimizer.

From github.com/hsivan/fosi, commit cf040ce, without its PyTorch half. Two imports that later
versions of JAX lack are replaced by what they stood for: the configuration, and a callback that
prints. It takes parameters in float32 alone. The network has as many as Lanczos' iteration has
steps, so that eigenvalues and vectors are exact whatever vector it starts from.
"""

import sys
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from _official import prepare, save

STEPS, EXAMPLES = 30, 8
K, SMALLEST, EVERY, WARMUP, ALPHA = 2, 1, 7, 4, 0.1
SHAPES = {"first": (2, 3), "bias": (3,), "second": (3,)}


def loss_fn(params, batch):
  inputs, targets = batch
  hidden = jnp.tanh(inputs @ params["first"] + params["bias"])
  return jnp.mean((hidden @ params["second"] - targets) ** 2)


def run(make, base, params, batch, **options):
  """Parameters before the first step and after each."""
  optimizer = make(
    base,
    loss_fn,
    batch,
    num_iters_to_approx_eigs=EVERY,
    approx_k=K,
    approx_l=SMALLEST,
    warmup_w=WARMUP,
    alpha=ALPHA,
    **options,
  )
  state, path = optimizer.init(params), [params]
  for _ in range(STEPS):
    updates, state = optimizer.update(jax.grad(loss_fn)(params, batch), state, params)
    params = optax.apply_updates(params, updates)
    path.append(params)
  return jax.tree.map(lambda *x: [*x], *path)


def main():
  prepare()
  jax.config.update("jax_enable_x64", True)
  printing = types.SimpleNamespace(id_tap=lambda *args, **kwargs: None)
  sys.modules["jax.experimental.host_callback"] = printing
  jax.experimental.host_callback = printing
  sys.modules["jax.config"] = types.SimpleNamespace(config=jax.config)
  sys.modules["fosi"] = types.ModuleType("fosi")
  sys.modules["fosi"].__path__ = [str(Path(sys.argv[1], "fosi").resolve())]
  from fosi.jax_optim import fosi_optimizer as fosi

  rng = np.random.default_rng(3)
  inputs = rng.normal(size=(EXAMPLES, 2)).round(2)
  targets = (np.sin(2 * inputs[:, 0]) + inputs[:, 1]).round(2)
  params = {name: rng.normal(size=shape).round(2) for name, shape in SHAPES.items()}
  problem = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), (params, (inputs, targets)))
  runs = {
    "average": run(fosi.fosi_adam, optax.adam(0.05), *problem),
    "heavy_ball": run(fosi.fosi_momentum, optax.sgd(0.05, momentum=0.9), *problem),
    "nesterov": run(fosi.fosi_nesterov, optax.sgd(0.02, momentum=0.9, nesterov=True), *problem),
    "none": run(fosi.fosi_sgd, optax.sgd(0.1), *problem),
  }
  save(__file__, {"inputs": inputs, "targets": targets, "runs": runs})


main()
