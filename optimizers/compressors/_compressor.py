"""The record that every compressor is, and how workers exchange what it makes."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from jaxrl import parallel


class Compressor(NamedTuple):
  r"""The functions that a distributed method needs of a compressor :math:`C`.

  A message is what one worker sends for one array: a tuple or dict of arrays, the fewer
  bytes the better. Its shapes depend on the array's shape alone.

  Attributes:
    compress: `compress(x) -> message`; `compress(x, key)` if it draws.
    add: `add(total, message, scale)` is :math:`t + s \, C(x)`, in the shape and dtype of
      `total`. It costs no more than the message where the message is sparse. With a shared
      key it is `add(total, message, scale, key)`, linear in the message.
    alpha: `alpha(size)` is the largest proven :math:`\alpha` of the contraction
      :math:`\mathbb{E} \|C(x) - x\|^2 \le (1 - \alpha) \|x\|^2` for `size` entries.
    draws: whether `compress` needs a key: "no"; "own", each worker another one; or "shared",
      all workers the same, so that their messages may be averaged before they are added.
  """

  compress: Callable[..., Any]
  add: Callable[..., jax.Array]
  alpha: Callable[[int], float]
  draws: Literal["no", "own", "shared"] = "no"


class Draws(NamedTuple):
  """State of a method that draws: the run's seed."""

  seed: jax.Array


def start_draws(*, random: bool) -> Draws | tuple[()]:
  """The first `Draws`; nothing where nothing is drawn."""
  return Draws(jnp.zeros([], jnp.int32)) if random else ()


def key_of(draws: Draws | tuple[()], count: jax.typing.ArrayLike) -> jax.Array | None:
  """The key of one step, which all workers share; `None` where nothing is drawn."""
  if not isinstance(draws, Draws):
    return None
  return jax.random.fold_in(jax.random.key(draws.seed), count)


def exchange(
  compressor: Compressor,
  trees: tuple[Any, Any, Any],
  axis_name: parallel.AxisName | None,
  *,
  key: jax.Array | None = None,
  weights: jax.Array | None = None,
) -> tuple[Any, Any, jax.Array]:
  r"""Each worker sends :math:`C(x_i)` for every leaf of a tree of its own.

  Args:
    compressor: :math:`C`.
    trees: the worker's :math:`x_i`; a total of the worker's own; and one that all share.
    axis_name: the axis of the workers; `None` is one worker.
    key: of the step, shared by all workers, if the compressor draws.
    weights: of the workers' messages in the shared total, `[n]`; 1 / n each by default.

  Returns:
    The worker's total plus :math:`C(x_i)`, the shared one plus the weighted sum of all
    workers' :math:`C(x_i)`, and the bytes that a worker sends.
  """
  tree, own, shared = trees
  messages = compress_tree(compressor, tree, axis_name, key)
  shared = add_means(compressor, shared, messages, axis_name, key=key, weights=weights)
  return add_tree(compressor, own, messages, key), shared, jnp.float32(message_bytes(messages))


def compress_tree(
  compressor: Compressor, tree: Any, axis_name: parallel.AxisName | None, key: jax.Array | None
) -> list[Any]:
  """The worker's messages, one a leaf."""
  return [
    _compress(compressor, x, leaf_key, axis_name)
    for x, leaf_key in _with_keys(jax.tree.leaves(tree), key)
  ]


def add_tree(
  compressor: Compressor, totals: Any, messages: list[Any], key: jax.Array | None
) -> Any:
  """A tree plus what the messages of its leaves stand for."""
  leaves, treedef = jax.tree.flatten(totals)
  pairs = zip(leaves, _with_keys(messages, key), strict=True)
  return treedef.unflatten(
    _add(compressor, total, message, 1.0, leaf_key) for total, (message, leaf_key) in pairs
  )


def add_means(
  compressor: Compressor,
  totals: Any,
  messages: list[Any],
  axis_name: parallel.AxisName | None,
  *,
  key: jax.Array | None = None,
  weights: jax.Array | None = None,
) -> Any:
  """`add_mean` for the leaves of a tree that all workers share."""
  leaves, treedef = jax.tree.flatten(totals)
  pairs = zip(leaves, _with_keys(messages, key), strict=True)
  return treedef.unflatten(
    add_mean(compressor, total, message, axis_name, key=leaf_key, weights=weights)
    for total, (message, leaf_key) in pairs
  )


def add_mean(
  compressor: Compressor,
  total: jax.Array,
  message: Any,
  axis_name: parallel.AxisName | None,
  *,
  key: jax.Array | None = None,
  weights: jax.Array | None = None,
) -> jax.Array:
  """`total` plus the weighted sum of what the messages of all workers stand for.

  The messages are all that crosses between workers. They are added one after the other, in
  the order of the workers, so that every device rounds alike: shared state stays equal.
  Messages that share a key are averaged on the way.
  """
  if axis_name is None:
    return _add(compressor, total, message, 1.0 if weights is None else weights[0], key)
  workers = parallel.size(axis_name)
  shares = jnp.full(workers, 1 / workers) if weights is None else weights
  if compressor.draws == "shared":
    share = shares[jax.lax.axis_index(axis_name)]
    message = jax.tree.map(lambda x: jax.lax.psum(share * x, axis_name), message)
    return _add(compressor, total, message, 1.0, key)

  def add(total, worker):
    return compressor.add(total, *worker), None

  messages = jax.tree.map(lambda x: parallel.gather(x, axis_name), message)
  return jax.lax.scan(add, total, (messages, shares))[0]


def _with_keys(leaves: list[Any], key: jax.Array | None) -> list[tuple[Any, jax.Array | None]]:
  if key is None:
    return [(leaf, None) for leaf in leaves]
  return [(leaf, jax.random.fold_in(key, i)) for i, leaf in enumerate(leaves)]


def _compress(
  compressor: Compressor, x: jax.Array, key: jax.Array | None, axis_name: parallel.AxisName | None
) -> Any:
  if compressor.draws == "no" or key is None:
    return compressor.compress(x)
  if compressor.draws == "own" and axis_name is not None:
    key = jax.random.fold_in(key, jax.lax.axis_index(axis_name))
  return compressor.compress(x, key)


def _add(
  compressor: Compressor,
  total: jax.Array,
  message: Any,
  scale: jax.typing.ArrayLike,
  key: jax.Array | None,
) -> jax.Array:
  shared = (key,) if compressor.draws == "shared" else ()
  return compressor.add(total, message, scale, *shared)


def message_bytes(message: Any) -> int:
  """The size of what a worker sends."""
  return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(message))
