"""A small regression problem over parameters of any tree, on which optimizers are checked.

Outputs are a smooth function of a random linear map of all parameters, so that every method
finds what it needs: a model with outputs, a loss per example, curvature that changes.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl import reduce
from jaxrl.oracle import Oracle

EXAMPLES, OUTPUTS, GROUPS = 8, 2, 3


class Data(NamedTuple):
  """The batch: for each leaf of the parameters its map to the outputs, and the targets."""

  maps: Any
  targets: jax.Array
  scale: jax.Array


def parameters(domain: str = "any", seed: int = 0, dtype: Any = jnp.float32) -> Any:
  """Parameters with a matrix, a vector and a scalar; eight divides the first axes."""
  shapes = {"dense": {"bias": (8,), "kernel": (16, 8)}, "gain": ()}
  rng = np.random.default_rng(seed)
  make = _positive if domain == "simplex" else _normal
  return jax.tree.map(
    lambda shape: jnp.asarray(make(rng, shape), dtype), shapes, is_leaf=lambda x: type(x) is tuple
  )


def data(params: Any, seed: int = 1, scale: float = 1.0) -> Data:
  """A batch for `params`; the loss and its gradient are multiplied by `scale`."""
  rng = np.random.default_rng(seed)
  size = max(1, sum(jnp.size(leaf) for leaf in jax.tree.leaves(params)))

  def map_of(leaf):
    values = rng.normal(size=(EXAMPLES, OUTPUTS, *jnp.shape(leaf))) / np.sqrt(size)
    return jnp.asarray(values, jnp.result_type(leaf))

  maps = jax.tree.map(map_of, params)
  wide = jnp.asarray(0.0).dtype
  targets = jnp.asarray(2 * rng.normal(size=(EXAMPLES, OUTPUTS)), wide)
  return Data(maps, targets, jnp.asarray(scale, wide))


def outputs_of(params: Any, batch: Data) -> jax.Array:
  """The model's outputs, `[EXAMPLES, OUTPUTS]`."""
  parts = jax.tree.map(lambda m, p: jnp.tensordot(m, p, axes=jnp.ndim(p)), batch.maps, params)
  linear = sum(jax.tree.leaves(parts), start=jnp.zeros((), jnp.bfloat16))
  return jnp.broadcast_to(linear + 0.3 * jnp.tanh(linear), batch.targets.shape)


def oracle(
  params: Any, batch: Data, model: Callable[[Any, Data], jax.Array] = outputs_of
) -> Oracle:
  """The loss of `batch` as a function of the parameters, with all its parts."""

  def losses_of(outputs):
    return batch.scale * jnp.mean((outputs - batch.targets) ** 2, axis=-1)

  def outputs(params, inputs=None):
    made = model(params, batch)
    if inputs is None:
      return made
    return {"logits": made + inputs, "features": jnp.tanh(made * inputs)}

  return Oracle(
    lambda params: jnp.mean(losses_of(outputs(params))),
    params,
    outputs=outputs,
    loss_of=lambda outputs: jnp.mean(losses_of(outputs)),
    losses=lambda params: losses_of(outputs(params)),
    of_slice=lambda params, index, slices: oracle(params, _slice_of(batch, index, slices), model)(
      params
    ),
    of_rows=lambda params, rows, share: _mean_of_rows(losses_of(outputs(params)), rows, share),
    batch={
      "group": jnp.arange(len(batch.targets)) % GROUPS,
      "index": jnp.arange(len(batch.targets)),
      "inputs": batch.targets,
      "labels": jnp.argmax(batch.targets, axis=-1).astype(jnp.int32),
    },
  )


def _mean_of_rows(losses: jax.Array, rows: jax.Array, share: bool) -> jax.Array:
  kept = rows.astype(losses.dtype)
  return jnp.mean(kept * losses) if share else reduce.weighted_mean(losses, kept)


def _slice_of(batch: Data, index: jax.typing.ArrayLike, slices: int) -> Data:
  size = batch.targets.shape[0] // slices

  def rows(leaf):
    return jax.lax.dynamic_slice_in_dim(leaf, index * size, size)

  return Data(jax.tree.map(rows, batch.maps), rows(batch.targets), batch.scale)


def _normal(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
  return rng.normal(size=shape)


def _positive(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
  weights = np.exp(rng.normal(size=shape))
  return weights / weights.sum(axis=-1, keepdims=True) if shape else np.ones(())
