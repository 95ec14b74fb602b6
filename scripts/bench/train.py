"""The train step against the loop that a user would write by hand in plain optax."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxrl import models, oracle, train
from objectives.classification.cross_entropy import cross_entropy
from optimizers.sam import sam
from scripts.bench.measure import Ratio, alternate

BATCH, STEPS = 64, 20


def suite(rounds: int) -> list[Ratio]:
  """AdamW, and SAM before AdamW, on the small CNN: seconds of 20 steps."""
  rng = np.random.default_rng(0)
  batch = {
    "inputs": rng.normal(size=(BATCH, 8, 8, 1)).astype(np.float32),
    "labels": rng.integers(10, size=BATCH).astype(np.int32),
    "mask": np.ones(BATCH, np.float32),
  }
  cases = {"adamw": None, "sam, adamw": 0.05}
  return [
    alternate(name, _library(rho, batch), _by_hand(rho, batch), rounds)
    for name, rho in cases.items()
  ]


def _library(rho: float | None, batch: dict[str, np.ndarray]) -> Callable[[], None]:
  optimizer = optax.adamw(1e-3) if rho is None else optax.chain(sam(rho), optax.adamw(1e-3))
  parts = train.make_train(
    models.make("cnn", 10), oracle.lift(cross_entropy), optimizer, jnp.zeros((1, 8, 8, 1))
  )
  step = jax.jit(parts.step, donate_argnums=0)
  return _repeated(lambda state: step(state, batch)[0], jax.jit(parts.init)(0))


def _by_hand(rho: float | None, batch: dict[str, np.ndarray]) -> Callable[[], None]:
  module, optimizer = models.Cnn(10), optax.adamw(1e-3)

  def init(key):
    variables = module.init({"params": key, "dropout": key}, batch["inputs"][:1], train=False)
    params = variables["params"]
    return params, variables["batch_stats"], optimizer.init(params), key

  def loss_fn(params, batch_stats, batch, key):
    logits, changed = module.apply(
      {"params": params, "batch_stats": batch_stats},
      batch["inputs"],
      train=True,
      rngs={"dropout": key},
      mutable=["batch_stats"],
    )
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["labels"])
    return losses.mean(), changed["batch_stats"]

  def step(state, batch):
    params, batch_stats, opt_state, key = state
    key, dropout_key = jax.random.split(key)
    gradient_fn = jax.value_and_grad(loss_fn, has_aux=True)
    (_, new_stats), gradient = gradient_fn(params, batch_stats, batch, dropout_key)
    if rho is not None:
      scale = rho / (optax.tree.norm(gradient) + 1e-12)
      uphill = jax.tree.map(lambda w, g: w + scale * g, params, gradient)
      gradient = gradient_fn(uphill, batch_stats, batch, dropout_key)[1]
    updates, opt_state = optimizer.update(gradient, opt_state, params)
    return optax.apply_updates(params, updates), new_stats, opt_state, key

  compiled = jax.jit(step, donate_argnums=0)
  return _repeated(lambda state: compiled(state, batch), jax.jit(init)(jax.random.key(0)))


def _repeated(step: Callable[[Any], Any], state: Any) -> Callable[[], None]:
  """Twenty steps on, from wherever the last call ended."""
  holder = [state]

  def run():
    for _ in range(STEPS):
      holder[0] = step(holder[0])
    jax.block_until_ready(holder[0])

  return run
