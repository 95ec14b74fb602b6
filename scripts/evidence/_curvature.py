"""Curvature of a trained network, measured the same way in every experiment.

All of it is about the mean cross-entropy of the training split, with the labels that training
saw, and compiled once for all runs of a model.
"""

import functools
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import optax

from jaxrl import data, models, train
from jaxrl.diagnostics.class_extremes import class_extremes
from jaxrl.diagnostics.hessian_spectrum import hessian_extremes
from jaxrl.diagnostics.sharpness import random_sharpness
from scripts.evidence._training import Trained

_ORDER, _SAMPLES = 20, 50

Losses: TypeAlias = Callable[[Any], jax.Array]
"""From parameters to the loss of each example, `[N]`."""


def top_eigenvalue(trained: Trained) -> dict[str, float]:
  """The largest eigenvalue of the Hessian."""
  return {"train/top eigenvalue": _measured(trained, _top_eigenvalue)}


def largest_gradient_norm(trained: Trained, radius: float) -> dict[str, float]:
  """The norm of the gradient after a step of that length in the direction in which it grows."""
  found = _measured(trained, _largest_gradient_norm, radius)
  return {"train/largest gradient norm nearby": found}


def mean_rise(trained: Trained, norm: float) -> dict[str, float]:
  """By how much the loss rises under Gaussian perturbations of that norm, on average."""
  return {"train/mean rise nearby": _measured(trained, _mean_rise, norm)}


def smallest_eigenvalue(trained: Trained, classes: tuple[int, ...]) -> dict[str, float]:
  """The smallest eigenvalue of the Hessian of one class's loss, the mean over some classes."""
  found = _measured(trained, _smallest_eigenvalue, classes)
  return {"train/smallest eigenvalue of the tail": found}


def _top_eigenvalue(losses: Losses, params: Any, _labels: jax.Array) -> jax.Array:
  loss = _mean(losses)
  return hessian_extremes(loss, params, jax.random.key(0), order=_ORDER).largest[0]


def _largest_gradient_norm(
  losses: Losses, params: Any, _labels: jax.Array, radius: float
) -> jax.Array:
  gradient = jax.grad(_mean(losses))

  def norm(point):
    return optax.tree.norm(gradient(point))

  uphill = jax.grad(norm)(params)
  step = optax.tree.scale(radius / optax.tree.norm(uphill), uphill)
  return norm(optax.tree.add(params, step))


def _mean_rise(losses: Losses, params: Any, _labels: jax.Array, norm: float) -> jax.Array:
  deviation = norm / sum(leaf.size for leaf in jax.tree.leaves(params)) ** 0.5
  key = jax.random.key(0)
  return random_sharpness(_mean(losses), params, key, deviation, samples=_SAMPLES).mean


def _smallest_eigenvalue(
  losses: Losses, params: Any, labels: jax.Array, classes: tuple[int, ...]
) -> jax.Array:
  def class_loss(point, place):
    own = labels == jnp.asarray(classes)[place]
    return jnp.sum(own * losses(point)) / jnp.sum(own)

  key = jax.random.key(0)
  return jnp.mean(class_extremes(class_loss, params, key, len(classes), order=_ORDER).smallest)


def _mean(losses: Losses) -> Losses:
  return lambda params: jnp.mean(losses(params))


def _measured(trained: Trained, measure: Callable[..., jax.Array], *settings: Any) -> float:
  """The measure of a network, with settings that are part of the program."""
  split = data.in_memory(trained.dataset.splits["train"])
  params = train.eval_params(trained.state.optimizer, trained.state.params)
  compiled = _compiled(
    trained.config.model, int(trained.dataset.num_classes or 0), measure, *settings
  )
  return float(compiled(params, trained.state.model, split["inputs"], split["labels"]))


@functools.cache
def _compiled(
  model: str, outputs: int, measure: Callable[..., jax.Array], *settings: Any
) -> Callable[..., jax.Array]:
  apply = models.make(model, outputs).apply

  @jax.jit
  def of_network(params, model_state, inputs, labels):
    def losses(point):
      logits, _ = apply(point, model_state, inputs, jax.random.key(0), False)
      return optax.softmax_cross_entropy_with_integer_labels(logits, labels)

    return measure(losses, params, labels, *settings)

  return of_network
