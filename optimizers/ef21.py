"""EF21: error feedback by compressing the difference to an estimate of the gradient."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxrl import check, parallel
from jaxrl.oracle import PerWorker

from .compressors._compressor import Compressor, add_mean, message_bytes

_INITS = ("full", "compressed")


class Ef21State(NamedTuple):
  """State of `ef21`: the worker's estimate of its gradient, and the mean of all workers'."""

  count: jax.typing.ArrayLike
  estimate: PerWorker
  mean: Any
  metrics: dict[str, jax.Array]


def ef21(
  compressor: Compressor, *, axis_name: str | None = None, init: str = "full"
) -> optax.GradientTransformationExtraArgs:
  r"""Replaces the mean of the workers' gradients by an estimate that takes little to send.

  Worker i of n holds an estimate :math:`G_i` of its gradient :math:`g_i`, and sends only
  the compressed difference:

  .. math::
    c_i = C(g_i - G_i), \qquad G_i \leftarrow G_i + c_i, \qquad
    G \leftarrow G + \tfrac1n \sum_i c_i, \qquad u = G.

  In the first step :math:`G_i = g_i`, sent whole (`init="full"`), or :math:`G_i = C(g_i)`
  (`init="compressed"`). Compression is per leaf. Follow it with what takes the step:
  `optax.chain(ef21(top_k(0.01), axis_name="data"), optax.sgd(0.1))`.

  Args:
    compressor: :math:`C`, such as `top_k(0.01)`.
    axis_name: the axis over which the workers are, each with its own gradient, under
      `jaxrl.parallel.per_worker_step`, `jax.shard_map`, `jax.pmap` or `jax.vmap`. `None`
      is one worker, n = 1, and no communication.
    init: how the estimates begin, "full" or "compressed".

  Returns:
    A gradient transformation whose updates are :math:`G`, the same on all workers.

  Raises:
    TypeError: `compressor` is not a Compressor.
    ValueError: `init` is unknown; or, from `update`, no axis is called `axis_name`, or the
      gradient is not the worker's own.

  Cost: no gradient evaluation; 8 bytes a parameter on each worker. A worker sends one
    message a leaf in each step, at most 8 bytes an entry with `top_k`, which is less than a
    dense all-reduce while n k is less than the number of parameters. `init="full"` adds one dense
    all-reduce in the first step; it stands in a branch that later steps don't take.
    `metrics["bytes_sent"]` is what a worker sends (with one worker: would send).

  Notes:
    :math:`G` is kept up to date rather than averaged anew, which would send everything. It
    therefore agrees with the mean of the :math:`G_i` to the rounding of the largest
    gradients so far.
    `vmap` over several runs turns the branch into a choice between two results, so that
    every step sends the dense message as well; use `init="compressed"` there.
    With `sgd(lr)` the paper proves convergence for lr up to
    :math:`1 / (L + \tilde L ((1 + \sqrt{1 - \alpha}) / \alpha - 1))`, where
    :math:`\tilde L` is the root mean square of the workers' smoothness constants, and
    :math:`\alpha` the compressor's `alpha`, the least over the leaves. Its experiments
    start from full gradients.

  References:
    [180] Richtárik, Sokolov, Fatkhullin, "EF21: A New, Simpler, Theoretically Better, and
      Practically Faster Error Feedback", 2021, arXiv:2106.05203

  Example:
    >>> import jax.numpy as jnp
    >>> from optimizers.compressors.top_k import top_k
    >>> optimizer = ef21(top_k(1), init="compressed")
    >>> gradient = jnp.array([3.0, 1.0, -2.0])
    >>> state = optimizer.init(gradient)
    >>> for _ in range(3):
    ...   updates, state = optimizer.update(gradient, state)
    ...   print(updates)
    [3. 0. 0.]
    [ 3.  0. -2.]
    [ 3.  1. -2.]
  """
  check.record("compressor", compressor, Compressor)
  check.one_of("init", init, _INITS)

  def init_fn(params):
    def zeros():  # each time new arrays: a state that holds one twice cannot be donated
      return jax.tree.map(lambda p: jnp.zeros(jnp.shape(p), _wide(p)), params)

    metrics = {"bytes_sent": jnp.zeros([], jnp.float32)}
    return Ef21State(jnp.zeros([], jnp.int32), PerWorker(zeros()), zeros(), metrics)

  def update_fn(updates, state, params=None, **extra_args):
    del params, extra_args
    gradient = updates
    if axis_name is not None:
      gradient = parallel.own_gradient("ef21", updates, axis_name)
    gradient = jax.tree.map(lambda g: g.astype(_wide(g)), gradient)
    sent = state.estimate.tree, state.mean, gradient

    if init == "full":
      first = state.count == 0
      estimate, mean, size = jax.lax.cond(first, dense, compressed, *sent)
    else:
      estimate, mean, size = compressed(*sent)
    out = jax.tree.map(lambda m, g: m.astype(g.dtype), mean, updates)
    count = optax.safe_increment(state.count)
    return out, Ef21State(count, PerWorker(estimate), mean, {"bytes_sent": size})

  def dense(estimate, mean, gradient):
    del estimate, mean
    mean = gradient if axis_name is None else jax.lax.pmean(gradient, axis_name)
    return gradient, mean, jnp.float32(message_bytes(gradient))

  def compressed(estimate, mean, gradient):
    treedef = jax.tree.structure(gradient)
    done, size = [], 0
    for own, shared, g in zip(*map(jax.tree.leaves, (estimate, mean, gradient)), strict=True):
      message = compressor.compress(g - own)
      shared = add_mean(compressor, shared, message, axis_name)
      done.append((compressor.add(own, message, 1.0), shared))
      size += message_bytes(message)
    estimate, mean = (jax.tree.unflatten(treedef, [pair[i] for pair in done]) for i in (0, 1))
    return estimate, mean, jnp.float32(size)

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _wide(x: Any) -> Any:
  return jnp.promote_types(jnp.result_type(x), jnp.float32)
