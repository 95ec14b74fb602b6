"""EF14: error feedback that adds what compression left out to the next gradient."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxrl import check, parallel
from jaxrl.oracle import PerWorker

from .compressors._compressor import Compressor, exchange, key_of, start_draws


class Ef14State(NamedTuple):
  """State of `ef14`: what each worker has not sent yet."""

  count: jax.typing.ArrayLike
  error: PerWorker
  metrics: dict[str, jax.Array]
  draws: Any = ()


def ef14(
  compressor: Compressor, *, axis_name: str | None = None
) -> optax.GradientTransformationExtraArgs:
  r"""Replaces the mean of the workers' updates by that of what they send compressed.

  Worker i of n keeps what compression left out, and adds it to its next update :math:`g_i`:

  .. math::
    p_i = e_i + g_i, \qquad u = \tfrac1n \sum_i C(p_i), \qquad e_i \leftarrow p_i - C(p_i).

  As in the paper the error is one of steps, so it stands behind the learning rate:
  `optax.chain(optax.sgd(0.1), ef14(top_k(0.01), axis_name="data"))`. In front of it, the
  method is the same where the rate is constant and C homogeneous.

  Args:
    compressor: :math:`C`, such as `top_k(0.01)`.
    axis_name: the axis over which the workers are, each with its own update, under
      `jaxrl.parallel.per_worker_step`, `jax.shard_map`, `jax.pmap` or `jax.vmap`. `None`
      is one worker, n = 1, and no communication.

  Returns:
    A gradient transformation whose updates are :math:`u`, the same on all workers.

  Raises:
    TypeError: `compressor` is not a Compressor.
    ValueError: from `update`, no axis is called `axis_name`, or the update is not the
      worker's own.

  Cost: no gradient evaluation; 4 bytes a parameter on each worker. A worker sends one
    message a leaf in each step; `metrics["bytes_sent"]` is its size.

  Notes:
    Without compression it is distributed SGD. What stands in front of it sees the worker's
    own gradient and keeps no state of its own that differs between workers: `sgd(0.1)` may,
    momentum and Adam may not. They may follow it.
    The error never goes to zero where workers' gradients differ at the minimum, as those of
    `ef21` do.

  References:
    [180] Seide, Fu, Droppo, Li, Yu, "1-Bit Stochastic Gradient Descent and its Application to
      Data-Parallel Distributed Training of Speech DNNs", 2014
    Baseline of Richtárik, Sokolov, Fatkhullin, "EF21: A New, Simpler, Theoretically Better, and
      Practically Faster Error Feedback", 2021, arXiv:2106.05203

  Example:
    >>> import jax.numpy as jnp
    >>> from optimizers.compressors.top_k import top_k
    >>> optimizer = ef14(top_k(1))
    >>> gradient = jnp.array([3.0, 1.0, -2.0])
    >>> state = optimizer.init(gradient)
    >>> for _ in range(3):
    ...   updates, state = optimizer.update(gradient, state)
    ...   print(updates)
    [3. 0. 0.]
    [ 0.  0. -4.]
    [6. 0. 0.]
  """
  check.record("compressor", compressor, Compressor)

  def init_fn(params):
    error = jax.tree.map(lambda p: jnp.zeros(jnp.shape(p), _wide(p)), params)
    metrics = {"bytes_sent": jnp.zeros([], jnp.float32)}
    draws = start_draws(random=compressor.draws != "no")
    return Ef14State(jnp.zeros([], jnp.int32), PerWorker(error), metrics, draws)

  def update_fn(updates, state, params=None, **extra_args):
    del params, extra_args
    own = updates
    if axis_name is not None:
      own = parallel.own_gradient("ef14", updates, axis_name)
    wanted = jax.tree.map(lambda e, g: e + g.astype(e.dtype), state.error.tree, own)
    nothing = jax.tree.map(lambda p: jnp.zeros(p.shape, p.dtype), wanted)
    trees = wanted, nothing, nothing
    key = key_of(state.draws, state.count)
    sent, mean, size = exchange(compressor, trees, axis_name, key=key)
    error = jax.tree.map(jnp.subtract, wanted, sent)
    out = jax.tree.map(lambda m, g: m.astype(g.dtype), mean, updates)
    count = optax.safe_increment(state.count)
    return out, Ef14State(count, PerWorker(error), {"bytes_sent": size}, state.draws)

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _wide(x: Any) -> Any:
  return jnp.promote_types(jnp.result_type(x), jnp.float32)
