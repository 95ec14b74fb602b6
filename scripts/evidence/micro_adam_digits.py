"""[191] MicroAdam is within a point of AdamW's accuracy, in a byte a parameter."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxrl import data
from jaxrl.models import Mlp
from optimizers.micro_adam import micro_adam
from scripts.evidence._experiment import Arm, Claim, Experiment

BATCH, STEPS, POINT = 64, 400, 0.01
ADAMW_RATES, RATES = (0.001, 0.003, 0.01), (0.0003, 0.001, 0.003)
MODEL = Mlp(10)
REACHED, BYTES = "test accuracy, AdamW's less a point", "bytes of state a parameter"


def adamw(rate: Any) -> optax.GradientTransformation:
  """With its defaults."""
  return optax.adamw(rate)


def with_feedback(rate: Any) -> optax.GradientTransformation:
  """MicroAdam with its defaults and AdamW's weight decay."""
  return micro_adam(rate, weight_decay=1e-4)


def without_feedback(rate: Any) -> optax.GradientTransformation:
  """The same with its error set to zero after every step."""
  inner = with_feedback(rate)

  def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
    after: Any
    updates, after = inner.update(updates, state, params)
    direction, *rest = after
    structure = jax.tree.structure(updates)
    leaves = [
      leaf._replace(**{name: jnp.zeros_like(getattr(leaf, name)) for name in leaf._fields[2:]})
      for leaf in structure.flatten_up_to(direction.leaves)
    ]
    return updates, (direction._replace(leaves=structure.unflatten(leaves)), *rest)

  return optax.GradientTransformation(inner.init, update)


@functools.cache
def splits() -> Any:
  """The digits."""
  return data.load("digits").splits


@functools.partial(jax.jit, static_argnums=0)
def trained(make: Any, rate: jax.Array, seed: jax.Array) -> Any:
  """Accuracy on validation and test, and the loss of each step."""
  inputs, labels = (jnp.asarray(splits()["train"][name]) for name in ("inputs", "labels"))
  optimizer = make(rate)
  init_key, data_key = jax.random.split(jax.random.key(seed))
  params: Any = MODEL.init(init_key, inputs[:1], False)["params"]

  def loss_fn(params, chosen):
    logits: Any = MODEL.apply({"params": params}, inputs[chosen], False)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels[chosen])
    return losses.mean()

  def step(carry, key):
    params, state = carry
    chosen = jax.random.randint(key, (BATCH,), 0, len(labels))
    loss, gradient = jax.value_and_grad(loss_fn)(params, chosen)
    updates, state = optimizer.update(gradient, state, params)
    return (optax.apply_updates(params, updates), state), loss

  start = params, optimizer.init(params)
  (params, _), losses = jax.lax.scan(step, start, jax.random.split(data_key, STEPS))

  def accuracy(split: str) -> Any:
    logits: Any = MODEL.apply({"params": params}, splits()[split]["inputs"], False)
    return jnp.mean(logits.argmax(axis=-1) == splits()[split]["labels"])

  return accuracy("validation"), accuracy("test"), losses


def bytes_a_parameter(optimizer: optax.GradientTransformation) -> float:
  """Of the whole state."""
  inputs = splits()["train"]["inputs"][:1]
  params = jax.eval_shape(lambda: MODEL.init(jax.random.key(0), inputs, False)["params"])
  state = jax.eval_shape(optimizer.init, params)
  kept = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
  return kept / sum(x.size for x in jax.tree.leaves(params))


def arm(make: Any, rates: tuple[float, ...]) -> Arm:
  """A setting for each learning rate."""

  def measured(rate: float, seeds: Sequence[int]):
    each = [trained(make, rate, seed) for seed in seeds]
    validation, test, losses = (np.stack(values) for values in zip(*each, strict=True))
    return {
      "validation/accuracy": validation,
      "test/accuracy": test,
      REACHED: test - (POINT if make is adamw else 0),
      BYTES: np.full(len(seeds), bytes_a_parameter(make(rate))),
      "curve/loss": losses[:, ::10],
    }

  return {f"{make.__name__}({rate})": functools.partial(measured, rate) for rate in rates}


EXPERIMENT = Experiment(
  methods=("micro_adam", "scale_by_micro_adam"),
  family="compression",
  setup=(
    "Digits, an MLP of two layers of 128, 400 steps on batches of 64. The bytes are those of the "
    "whole state, biases included. The null is MicroAdam whose error is set to zero after every "
    "step; that of the bytes, AdamW."
  ),
  arms={
    "method": arm(with_feedback, RATES),
    "baseline": arm(adamw, ADAMW_RATES),
    "null": arm(without_feedback, RATES),
  },
  claims=(
    Claim("It is more accurate than AdamW less a point", REACHED, "higher"),
    Claim("It keeps at least seven bytes a parameter less", BYTES, "lower", 6.999, null="baseline"),
  ),
  tuned_by="validation/accuracy",
  tuned="higher",
)
