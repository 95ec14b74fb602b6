"""Module criticality: how much the loss rises when one module moves by a part of its norm."""

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxrl import check

from . import _loops, _vectors


def module_criticality(
  loss: Callable[..., jax.Array],
  params: Any,
  batches: Any = None,
  *,
  where: str = "kernel$",
  epsilon: jax.typing.ArrayLike = 0.1,
  epochs: int = 10,
  learning_rate: jax.typing.ArrayLike = 1.0,
) -> dict[str, jax.Array]:
  r"""The rise of the loss at the worst weights of each module, the others as they are.

  .. math::
    \mathrm{MRC}_m = \max_{\|\delta\|_F \le \epsilon \|\theta_m\|_F}
    L(\theta_m + \delta) - L(\theta)

  Gradient ascent visits every batch in each epoch and projects onto the ball behind it; the
  largest loss at the end of an epoch counts. On adversarial examples, made once at the
  parameters, it is the module robust criticality; the module of the least one can be
  fine-tuned at the smallest price in robustness.

  Args:
    loss: `loss(params)`, or with batches `loss(params, batch)`, the mean over a batch.
    params: a tree of arrays; bf16 is widened to float32 first.
    batches: a tree of arrays with a leading axis over batches of one size.
    where: a regular expression; each array whose path, such as `Dense_0/kernel`, it matches
      is a module.
    epsilon: radius relative to the module's norm, at least 0.
    epochs: at least 1.
    learning_rate: of the ascent, above 0.

  Returns:
    The criticality of each module, a scalar, by path.

  Raises:
    ValueError: an argument is out of range, or `where` matches no path.

  Cost: for each module and epoch, a gradient evaluation and one of the loss on every batch;
  12 bytes a parameter.

  Notes:
    As in the official code, the start is no candidate: where the first step overshoots, the
    result can be negative. That code takes shuffled batches of 512 of the test split;
    examples of the training split leave the test split for the test.

  References:
    [76] Zhu, Wang, Hu, Xie, Yang, "Improving Generalization of Adversarial Training via
      Robust Critical Fine-Tuning", 2023, arXiv:2308.02533

  Example:
    >>> import jax.numpy as jnp
    >>> params = {"a": {"kernel": jnp.array([3.0, 4.0])}, "b": {"kernel": jnp.array([1.0])}}
    >>> loss = lambda w: 2.0 * w["a"]["kernel"][0] + w["b"]["kernel"][0]
    >>> found = module_criticality(loss, params)
    >>> {name: f"{rise:.3f}" for name, rise in found.items()}  # 2 * 0.1 * 5 and 0.1 * 1
    {'a/kernel': '1.000', 'b/kernel': '0.100'}
  """
  check.at_least("epsilon", epsilon, 0)
  check.whole("epochs", epochs, 1)
  check.above("learning_rate", learning_rate, 0)
  params = _vectors.wide(params)
  paths = [
    jax.tree_util.keystr(path, simple=True, separator="/")
    for path, _ in jax.tree_util.tree_leaves_with_path(params)
  ]
  modules = [i for i, path in enumerate(paths) if re.search(where, path)]
  if not modules:
    raise ValueError(f"where must match a path among {paths}, got {where!r}")
  if batches is None:
    batches, loss_of = jnp.zeros((1, 0)), lambda w, batch: loss(w)
  else:
    loss_of = loss
  epoch, mean = _epoch_and_mean(loss_of, learning_rate, epsilon)
  nowhere = jax.tree.map(jnp.zeros_like, params)

  def highest(module, params, batches):
    start = jax.tree.map(jnp.zeros_like, params), jnp.full((), -jnp.inf)
    carry = _loops.repeat(epoch, epochs, start, module, params, batches, compiled=False)
    return carry[1]

  highest_losses = _loops.each(highest, jnp.asarray(modules), params, batches)
  rises = highest_losses - mean(nowhere, params, batches)
  return {paths[module]: rises[i] for i, module in enumerate(modules)}


def _epoch_and_mean(
  loss: Callable[..., jax.Array],
  learning_rate: jax.typing.ArrayLike,
  epsilon: jax.typing.ArrayLike,
) -> tuple[Callable[..., Any], Callable[..., jax.Array]]:
  """An epoch of ascent in a module, counted among the leaves; the mean loss over batches."""

  @jax.jit
  def loss_at(batch, delta, params):
    return loss(_vectors.moved(params, 1, delta), batch)

  def climb(i, delta, module, params, batches):
    batch = jax.tree.map(lambda x: x[i], batches)
    gradient = jax.grad(loss_at, argnums=1)(batch, delta, params)
    return _vectors.moved(delta, learning_rate, _only(module, gradient))

  @jax.jit
  def project(delta, module, params):
    radius = epsilon * _vectors.norm(_only(module, params))
    length = _vectors.norm(delta)
    return _vectors.scaled(jnp.where(length > radius, radius / length, 1), delta)

  def mean(delta, params, batches):
    return jnp.mean(_loops.each(loss_at, batches, delta, params))

  def epoch(_, carry, module, params, batches):
    delta, highest = carry
    steps = jax.tree.leaves(batches)[0].shape[0]
    delta = _loops.repeat(climb, steps, delta, module, params, batches)
    delta = project(delta, module, params)
    return delta, jnp.maximum(highest, mean(delta, params, batches))

  return epoch, mean


def _only(module: jax.Array, tree: Any) -> Any:
  """The tree with zeros in all leaves but one."""
  leaves, structure = jax.tree.flatten(tree)
  kept = [jnp.where(module == i, x, jnp.zeros_like(x)) for i, x in enumerate(leaves)]
  return jax.tree.unflatten(structure, kept)
