"""Curvature of a trained network, measured the same way in every experiment."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxrl import data
from jaxrl.diagnostics.hessian_spectrum import hessian_extremes
from scripts.evidence._training import Trained

_ORDER = 20


def top_eigenvalue(trained: Trained) -> dict[str, float]:
  """The largest eigenvalue of the Hessian of the mean training cross-entropy."""
  train = trained.dataset.splits["train"]
  batch = next(data.eval_batches(train, data.size(train)))
  largest = _largest_of(trained.parts.predict)(trained.state, batch)
  return {"train/top eigenvalue": float(largest)}


@functools.cache
def _largest_of(predict: Callable[..., Any]) -> Callable[..., jax.Array]:
  @jax.jit
  def largest(state, batch):
    def loss(params):
      logits = predict(state._replace(params=params), batch)["logits"]
      return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, batch["labels"]))

    return hessian_extremes(loss, state.params, jax.random.key(0), order=_ORDER).largest[0]

  return largest
