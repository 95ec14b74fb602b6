"""EF21-W: EF21 in which each worker counts by the smoothness of its loss."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxrl import check, parallel
from jaxrl.oracle import PerWorker

from .compressors._compressor import Compressor, exchange, key_of, message_bytes, start_draws


class Ef21WState(NamedTuple):
  """State of `ef21_w`: the worker's estimate, and the weighted mean of all workers'."""

  count: jax.typing.ArrayLike
  estimate: PerWorker
  mean: Any
  metrics: dict[str, jax.Array]
  draws: Any = ()


def ef21_w(
  compressor: Compressor,
  smoothness: Sequence[float],
  *,
  axis_name: str | None = None,
  init: str = "full",
) -> optax.GradientTransformationExtraArgs:
  r"""EF21 on gradients that are scaled by how smooth each worker's loss is.

  With :math:`w_i = L_i / \sum_j L_j` of the smoothness constants :math:`L_i`, worker i of n
  holds an estimate :math:`G_i` of :math:`g_i / (n w_i)`:

  .. math::
    c_i = C\Big(\frac{g_i}{n w_i} - G_i\Big), \qquad G_i \leftarrow G_i + c_i, \qquad
    G \leftarrow G + \sum_i w_i c_i, \qquad u = G.

  In the first step :math:`G_i = g_i / (n w_i)`, sent whole (`init="full"`), or compressed
  (`init="compressed"`). Follow it with what takes the step:
  `optax.chain(ef21_w(top_k(0.01), (1.0, 2.0), axis_name="data"), optax.sgd(0.1))`.

  Args:
    compressor: :math:`C`, such as `top_k(0.01)`.
    smoothness: :math:`L_i` above 0, one for each worker in their order; only ratios matter.
    axis_name: the axis over which the workers are, as for `ef21`. `None` is one worker.
    init: how the estimates begin, "full" or "compressed".

  Returns:
    A gradient transformation whose updates are :math:`G`, the same on all workers.

  Raises:
    TypeError: `compressor` is not a Compressor.
    ValueError: `smoothness` is empty or not positive, or `init` unknown; or, from `update`,
      `smoothness` is not one number a worker, no axis is called `axis_name`, or the gradient
      is not the worker's own.

  Cost: no gradient evaluation; 8 bytes a parameter on each worker, and messages as in `ef21`.

  Notes:
    With a compressor that is positively homogeneous, as most are, the updates are those of
    `ef21` to rounding. What is new there is the learning rate, `ef21_stepsize`, which the
    paper's experiments compare. `natural_rounding` is not homogeneous.

  References:
    [180] Richtárik, Gasanov, Burlachenko, "Error Feedback Reloaded: From Quadratic to
      Arithmetic Mean of Smoothness Constants", 2024, arXiv:2402.10774

  Example:
    >>> import jax.numpy as jnp
    >>> from optimizers.compressors.top_k import top_k
    >>> optimizer = ef21_w(top_k(1), (4.0,), init="compressed")
    >>> gradient = jnp.array([3.0, 1.0, -2.0])
    >>> state = optimizer.init(gradient)
    >>> for _ in range(2):
    ...   updates, state = optimizer.update(gradient, state)
    ...   print(updates)
    [3. 0. 0.]
    [ 3.  0. -2.]
  """
  check.record("compressor", compressor, Compressor)
  check.one_of("init", init, ("full", "compressed"))
  weights = _weights(smoothness)

  def init_fn(params):
    def zeros():  # each time new arrays: a state that holds one twice cannot be donated
      return jax.tree.map(lambda p: jnp.zeros(jnp.shape(p), _wide(p)), params)

    metrics = {"bytes_sent": jnp.zeros([], jnp.float32)}
    draws = start_draws(random=compressor.draws != "no")
    return Ef21WState(jnp.zeros([], jnp.int32), PerWorker(zeros()), zeros(), metrics, draws)

  def update_fn(updates, state, params=None, **extra_args):
    del params, extra_args
    gradient, worker = updates, 0
    if axis_name is not None:
      gradient = parallel.own_gradient("ef21_w", updates, axis_name)
      worker = jax.lax.axis_index(axis_name)
    _check_workers(weights, axis_name)
    factor = jnp.asarray(1 / (len(weights) * weights))[worker]
    gradient = jax.tree.map(lambda g: g.astype(_wide(g)), gradient)
    scaled = jax.tree.map(lambda g: (factor * g).astype(g.dtype), gradient)
    key = key_of(state.draws, state.count)

    def dense(gradient, scaled, estimate, mean):
      del estimate, mean
      mean = gradient if axis_name is None else jax.lax.pmean(gradient, axis_name)
      return scaled, mean, jnp.float32(message_bytes(gradient))

    def compressed(gradient, scaled, estimate, mean):
      del gradient
      trees = jax.tree.map(jnp.subtract, scaled, estimate), estimate, mean
      return exchange(compressor, trees, axis_name, key=key, weights=jnp.asarray(weights))

    sent = gradient, scaled, state.estimate.tree, state.mean
    if init == "full":
      estimate, mean, size = jax.lax.cond(state.count == 0, dense, compressed, *sent)
    else:
      estimate, mean, size = compressed(*sent)
    out = jax.tree.map(lambda m, g: m.astype(g.dtype), mean, updates)
    count = optax.safe_increment(state.count)
    return out, Ef21WState(count, PerWorker(estimate), mean, {"bytes_sent": size}, state.draws)

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _weights(smoothness: Sequence[float]) -> np.ndarray:
  if not isinstance(smoothness, Sequence) or not smoothness:
    raise ValueError(f"smoothness must hold a number for each worker, got {smoothness!r}")
  for value in smoothness:
    check.above("smoothness", value, 0)
  return np.asarray(smoothness, np.float64) / sum(smoothness)


def _check_workers(weights: np.ndarray, axis_name: str | None) -> None:
  workers = 1 if axis_name is None else parallel.size(axis_name)
  if len(weights) != workers:
    raise ValueError(
      f"smoothness must hold {workers} numbers, one for each worker, got {len(weights)}"
    )


def _wide(x: Any) -> Any:
  return jnp.promote_types(jnp.result_type(x), jnp.float32)
