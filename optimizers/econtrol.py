"""EControl: EF21 that also feeds back a controlled part of what it never sent."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxrl import check, parallel
from jaxrl.oracle import PerWorker

from .compressors._compressor import Compressor, exchange, key_of, message_bytes, start_draws


class EcontrolState(NamedTuple):
  """State of `econtrol`: the worker's error and estimate, and the mean of all estimates."""

  count: jax.typing.ArrayLike
  error: PerWorker
  estimate: PerWorker
  mean: Any
  metrics: dict[str, jax.Array]
  draws: Any = ()


def econtrol(
  compressor: Compressor, eta: float = 0.1, *, axis_name: str | None = None, init: str = "full"
) -> optax.GradientTransformationExtraArgs:
  r"""Replaces the mean of the workers' gradients by an estimate whose error is controlled.

  Worker i of n holds an estimate :math:`h_i` of its gradient :math:`g_i` and the sum
  :math:`e_i` of what the estimates lacked so far, a part of which goes into each message:

  .. math::
    D_i = C(\eta e_i + g_i - h_i), \qquad h_i \leftarrow h_i + D_i, \qquad
    h \leftarrow h + \tfrac1n \sum_i D_i, \qquad e_i \leftarrow e_i + g_i - h_i,
    \qquad u = h.

  It starts from :math:`e_i = 0` and :math:`h_i = g_i`, sent whole (`init="full"`), or
  :math:`h_i = 0` (`init="compressed"`). Compression is per leaf. Follow it with what takes
  the step: `optax.chain(econtrol(top_k(0.01), 0.01, axis_name="data"), optax.sgd(0.1))`.

  Args:
    compressor: :math:`C`, such as `top_k(0.01)`.
    eta: :math:`\eta`, the strength of the control, in [0, 1]; 0 is `ef21`. The larger the
      compression, the smaller it has to be: 0.01 for 1 % of the entries.
    axis_name: the axis over which the workers are, each with its own gradient, under
      `jaxrl.parallel.per_worker_step`, `jax.shard_map`, `jax.pmap` or `jax.vmap`. `None`
      is one worker, n = 1, and no communication.
    init: how the estimates begin, "full" or "compressed".

  Returns:
    A gradient transformation whose updates are :math:`h`, the same on all workers.

  Raises:
    TypeError: `compressor` is not a Compressor.
    ValueError: `eta` or `init` is out of range; or, from `update`, no axis is called
      `axis_name`, or the gradient is not the worker's own.

  Cost: no gradient evaluation; 12 bytes a parameter on each worker. A worker sends one
    message a leaf in each step, as in `ef21`; `metrics["bytes_sent"]` is its size.

  Notes:
    With :math:`\eta` too large it grows geometrically, at times only after tens of steps;
    1 does on the example on which compression without feedback diverges. The theorems have
    `econtrol_theory_eta`, far below what works; the paper's experiments tune it.
    With a constant learning rate :math:`\gamma` behind it, the points
    :math:`x - \gamma \tfrac1n \sum_i e_i` take steps of the uncompressed mean gradient.

  References:
    [333] Gao, Islamov, Stich, "EControl: Fast Distributed Optimization with Compression and
      Error Control", 2023, arXiv:2311.05645

  Example:
    >>> import jax.numpy as jnp
    >>> from optimizers.compressors.top_k import top_k
    >>> optimizer = econtrol(top_k(1), 0.5, init="compressed")
    >>> gradient = jnp.array([3.0, 1.0, -2.0])
    >>> state = optimizer.init(gradient)
    >>> for _ in range(3):
    ...   updates, state = optimizer.update(gradient, state)
    ...   print(updates)
    [3. 0. 0.]
    [ 3.  0. -3.]
    [ 3.  2. -3.]
  """
  check.record("compressor", compressor, Compressor)
  check.between("eta", eta, 0, 1)
  check.one_of("init", init, ("full", "compressed"))

  def init_fn(params):
    def zeros():  # each time new arrays: a state that holds one twice cannot be donated
      return jax.tree.map(lambda p: jnp.zeros(jnp.shape(p), _wide(p)), params)

    metrics = {"bytes_sent": jnp.zeros([], jnp.float32)}
    draws = start_draws(random=compressor.draws != "no")
    own = PerWorker(zeros()), PerWorker(zeros())
    return EcontrolState(jnp.zeros([], jnp.int32), *own, zeros(), metrics, draws)

  def update_fn(updates, state, params=None, **extra_args):
    del params, extra_args
    gradient = updates
    if axis_name is not None:
      gradient = parallel.own_gradient("econtrol", updates, axis_name)
    gradient = jax.tree.map(lambda g: g.astype(_wide(g)), gradient)
    key = key_of(state.draws, state.count)

    def compressed(gradient, error, estimate, mean):
      wanted = jax.tree.map(lambda e, g, h: eta * e + g - h, error, gradient, estimate)
      wanted = jax.tree.map(lambda d, g: d.astype(g.dtype), wanted, gradient)
      return exchange(compressor, (wanted, estimate, mean), axis_name, key=key)

    sent = gradient, state.error.tree, state.estimate.tree, state.mean
    if init == "full":
      estimate, mean, size = jax.lax.cond(state.count == 0, dense, compressed, *sent)
    else:
      estimate, mean, size = compressed(*sent)
    error = jax.tree.map(lambda e, g, h: e + (g - h), state.error.tree, gradient, estimate)
    out = jax.tree.map(lambda m, g: m.astype(g.dtype), mean, updates)
    own = PerWorker(error), PerWorker(estimate)
    count = optax.safe_increment(state.count)
    return out, EcontrolState(count, *own, mean, {"bytes_sent": size}, state.draws)

  def dense(gradient, error, estimate, mean):
    del error, estimate, mean
    mean = gradient if axis_name is None else jax.lax.pmean(gradient, axis_name)
    return gradient, mean, jnp.float32(message_bytes(gradient))

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def econtrol_theory_eta(alpha: float) -> float:
  r"""The strength :math:`\eta = \alpha / 400` for which convergence of `econtrol` is proven.

  Args:
    alpha: the compressor's :math:`\alpha` in (0, 1], the least over the leaves.

  Returns:
    :math:`\eta`.

  Raises:
    ValueError: `alpha` is out of range.

  References:
    [333] Gao, Islamov, Stich, "EControl: Fast Distributed Optimization with Compression and
      Error Control", 2023, arXiv:2311.05645

  Example:
    >>> econtrol_theory_eta(1.0)
    0.0025
  """
  check.above("alpha", alpha, 0)
  check.between("alpha", alpha, 0, 1)
  return alpha / 400


def _wide(x: Any) -> Any:
  return jnp.promote_types(jnp.result_type(x), jnp.float32)
