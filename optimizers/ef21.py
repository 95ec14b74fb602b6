"""EF21: error feedback by compressing the difference to an estimate of the gradient."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxrl import check, parallel
from jaxrl.oracle import PerWorker

from .compressors._compressor import (
  Compressor,
  add_means,
  add_tree,
  compress_tree,
  exchange,
  key_of,
  message_bytes,
  start_draws,
)

_INITS = ("full", "compressed")


class Ef21State(NamedTuple):
  """State of `ef21`: the worker's estimate of its gradient, and the mean of all workers'.

  The last three are empty without what needs them: `momentum`, a `downlink` (what came back
  so far), and something to draw.
  """

  count: jax.typing.ArrayLike
  estimate: PerWorker
  mean: Any
  metrics: dict[str, jax.Array]
  momentum: PerWorker | tuple[()] = ()
  returned: Any = ()
  draws: Any = ()


def ef21(
  compressor: Compressor,
  *,
  axis_name: str | None = None,
  init: str = "full",
  momentum: float | None = None,
  participants: int | None = None,
  downlink: Compressor | None = None,
  plus: bool = False,
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

  The variants, which combine: with `momentum` :math:`\eta` (EF21-SGDM) :math:`v_i` takes the
  place of :math:`g_i`; `participants` (EF21-PP) are the only workers whose :math:`G_i`
  changes in a step; with a `downlink` :math:`C_s` (EF21-BC) the updates are H; and with
  `plus` (EF21+) :math:`G_i` is what is nearer to :math:`g_i`:

  .. math::
    v_i \leftarrow (1 - \eta) v_i + \eta g_i, \qquad
    H \leftarrow H + C_s(G - H), \qquad
    G_i \leftarrow G_i + c_i \text{ or } C(g_i).

  EF21-HB is EF21 before heavy-ball momentum: `ef21(...) | sgd(0.1, momentum=0.9)`.

  Args:
    compressor: :math:`C`, such as `top_k(0.01)`.
    axis_name: the axis over which the workers are, each with its own gradient, under
      `jaxrl.parallel.per_worker_step`, `jax.shard_map`, `jax.pmap` or `jax.vmap`. `None`
      is one worker, n = 1, and no communication.
    init: how the estimates begin, "full" or "compressed".
    momentum: :math:`\eta` in (0, 1], the weight of the new gradient; the first
      :math:`v_i` is :math:`g_i`. The paper of EF21-SGDM has 0.1. `None` is without.
    participants: how many workers take part in a step, drawn anew each time; in the first
      all do. `None` is all.
    downlink: :math:`C_s`, the compressor of what a server would send back. `None` is none.
    plus: whether :math:`G_i` may be replaced by :math:`C(g_i)`.

  Returns:
    A gradient transformation whose updates are :math:`G`, the same on all workers.

  Raises:
    TypeError: `compressor` or `downlink` is not a Compressor.
    ValueError: `init` is unknown, or `momentum` or `participants` out of range; or, from
      `update`, no axis is called `axis_name`, there are fewer workers than `participants`,
      or the gradient is not the worker's own.

  Cost: no gradient evaluation; 8 bytes a parameter on each worker, and 4 more each for
    `momentum` and `downlink`. A worker sends one message a leaf in each step, at most 8 bytes
    an entry with `top_k`, which is less than a dense all-reduce while n k is less than the
    number of parameters. `init="full"` adds one dense all-reduce in the first step; it stands
    in a branch that later steps don't take.
    `metrics["bytes_sent"]` is what a worker sends (with one worker: would send).
    `plus` adds one flag, and sends densely in steps in which a worker replaced its
    :math:`G_i`: the mean could not follow otherwise, as no one keeps the others' estimates.

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
    start from full gradients. `ef21_stepsize` has it, and the newer one.
    Workers that take no part send all the same, with weight zero, since all run one
    program: `participants` saves no traffic. Nor does `downlink`, as each worker keeps
    :math:`G` itself: `metrics["bytes_returned"]` is what a server would send to each.
    The papers allow any sampling of workers; a fixed number is that of their experiments.

  References:
    [180] Richtárik, Sokolov, Fatkhullin, "EF21: A New, Simpler, Theoretically Better, and
      Practically Faster Error Feedback", 2021, arXiv:2106.05203
    Fatkhullin, Sokolov, Gorbunov, Li, Richtárik, "EF21 with Bells & Whistles: Practical
      Algorithmic Extensions of Modern Error Feedback", 2021, arXiv:2110.03294
    Fatkhullin, Tyurin, Richtárik, "Momentum Provably Improves Error Feedback!", 2023,
      arXiv:2305.15155

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
  if momentum is not None:
    check.above("momentum", momentum, 0)
    check.between("momentum", momentum, 0, 1)
  if participants is not None:
    check.whole("participants", participants, 1)
  if downlink is not None:
    check.record("downlink", downlink, Compressor)
  draws = {compressor.draws, "no" if downlink is None else downlink.draws}
  random = participants is not None or draws != {"no"}

  def init_fn(params):
    def zeros():  # each time new arrays: a state that holds one twice cannot be donated
      return jax.tree.map(lambda p: jnp.zeros(jnp.shape(p), _wide(p)), params)

    names = ("bytes_sent",) if downlink is None else ("bytes_sent", "bytes_returned")
    return Ef21State(
      jnp.zeros([], jnp.int32),
      PerWorker(zeros()),
      zeros(),
      {name: jnp.zeros([], jnp.float32) for name in names},
      () if momentum is None else PerWorker(zeros()),
      () if downlink is None else zeros(),
      start_draws(random=random),
    )

  def update_fn(updates, state, params=None, **extra_args):
    del params, extra_args
    gradient = updates
    if axis_name is not None:
      gradient = parallel.own_gradient("ef21", updates, axis_name)
    gradient = jax.tree.map(lambda g: g.astype(_wide(g)), gradient)
    if momentum is not None:
      gradient = _averaged(gradient, state.momentum.tree, momentum, state.count)
    keys = _keys(state)

    def compressed(*trees):
      present = _present(participants, axis_name, keys[0], state.count)
      step = _plus if plus else _markov
      return step(compressor, trees, axis_name, keys[1], present)

    sent = gradient, state.estimate.tree, state.mean
    estimate, mean, size = _first(init, state.count, compressed, axis_name, sent)
    metrics, returned = {"bytes_sent": size}, state.returned
    if downlink is not None:
      start = jnp.asarray((init == "full") & (jnp.asarray(state.count) == 0))
      returned, metrics["bytes_returned"] = _sent_back(downlink, mean, returned, keys[2], start)
    out = jax.tree.map(
      lambda m, g: m.astype(g.dtype), mean if downlink is None else returned, updates
    )
    return out, Ef21State(
      optax.safe_increment(state.count),
      PerWorker(estimate),
      mean,
      metrics,
      () if momentum is None else PerWorker(gradient),
      returned,
      state.draws,
    )

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def ef21_stepsize(
  smoothness: float, of_workers: Sequence[float], alpha: float, *, mean: str = "arithmetic"
) -> float:
  r"""The largest learning rate for which `ef21(...) | sgd(learning_rate)` provably converges.

  .. math::
    \eta = \frac1{L + \tilde L \xi}, \qquad \xi = \frac{1 + \sqrt{1 - \alpha}}{\alpha} - 1

  with :math:`\tilde L` the mean of the workers' smoothness constants :math:`L_i`: the
  arithmetic one, or in the older theory the quadratic one, which is not less.

  Args:
    smoothness: L, of the mean of the workers' losses, above 0.
    of_workers: :math:`L_i`, of each worker's loss, above 0.
    alpha: the compressor's :math:`\alpha` in (0, 1], the least over the leaves.
    mean: "arithmetic" or "quadratic".

  Returns:
    :math:`\eta`, for deterministic gradients.

  Raises:
    ValueError: an argument is out of range.

  References:
    [180] Richtárik, Gasanov, Burlachenko, "Error Feedback Reloaded: From Quadratic to
      Arithmetic Mean of Smoothness Constants", 2024, arXiv:2402.10774

  Example:
    >>> f"{1 / ef21_stepsize(1.0, [1.0, 1.0], alpha=0.25):.4f}"
    '7.4641'
  """
  check.above("smoothness", smoothness, 0)
  check.above("alpha", alpha, 0)
  check.between("alpha", alpha, 0, 1)
  check.one_of("mean", mean, ("arithmetic", "quadratic"))
  if not of_workers:
    raise ValueError(f"of_workers must hold a number for each worker, got {of_workers!r}")
  for value in of_workers:
    check.above("of_workers", value, 0)
  power = 1 if mean == "arithmetic" else 2
  typical = (sum(value**power for value in of_workers) / len(of_workers)) ** (1 / power)
  return 1 / (smoothness + typical * ((1 + math.sqrt(1 - alpha)) / alpha - 1))


def _keys(state: Ef21State) -> Any:
  """Keys of who takes part, of what workers send, and of what comes back."""
  key = key_of(state.draws, state.count)
  return (None,) * 3 if key is None else jax.random.split(key, 3)


def _averaged(gradient: Any, average: Any, weight: Any, count: Any) -> Any:
  weight = jnp.where(count == 0, 1, weight)
  return jax.tree.map(lambda v, g: v + (weight * (g - v)).astype(v.dtype), average, gradient)


def _first(init: str, count: Any, compressed: Any, axis_name: str | None, trees: Any) -> Any:
  """The first step, if it is dense, or a later one: estimate, mean and bytes sent."""

  def dense(gradient, estimate, mean):
    del estimate, mean
    size = jnp.float32(message_bytes(gradient))
    return gradient, _mean(gradient, axis_name), size

  if init != "full":
    return compressed(*trees)
  return jax.lax.cond(count == 0, dense, compressed, *trees)


def _mean(tree: Any, axis_name: str | None) -> Any:
  return tree if axis_name is None else jax.lax.pmean(tree, axis_name)


def _present(
  participants: int | None, axis_name: str | None, key: Any, count: Any
) -> jax.Array | None:
  """Which workers take part, `[n]`, the same on all of them; `None` if all do."""
  if participants is None:
    return None
  workers = 1 if axis_name is None else parallel.size(axis_name)
  if participants > workers:
    raise ValueError(f"participants must be at most the {workers} workers, got {participants}")
  return (jax.random.permutation(key, workers) < participants) | (count == 0)


def _markov(
  compressor: Compressor, trees: Any, axis_name: str | None, key: Any, present: Any
) -> Any:
  """EF21's own step: estimate, mean and bytes sent."""
  gradient, estimate, mean = trees
  difference = jax.tree.map(jnp.subtract, gradient, estimate)
  weights = None if present is None else present / len(present)
  moved, mean, size = exchange(
    compressor, (difference, estimate, mean), axis_name, key=key, weights=weights
  )
  return _where_present(present, axis_name, moved, estimate), mean, size


def _plus(compressor: Compressor, trees: Any, axis_name: str | None, key: Any, present: Any) -> Any:
  """The step of EF21+, which is dense where a worker replaces its estimate."""
  gradient, estimate, mean = trees
  difference = jax.tree.map(jnp.subtract, gradient, estimate)
  messages = compress_tree(compressor, difference, axis_name, key)
  moved = add_tree(compressor, estimate, messages, key)
  fresh = add_tree(
    compressor,
    jax.tree.map(jnp.zeros_like, gradient),
    compress_tree(compressor, gradient, axis_name, key),
    key,
  )
  nearer = _distance(fresh, gradient) < _distance(moved, gradient)
  chosen = jax.tree.map(lambda f, m: jnp.where(nearer, f, m), fresh, moved)
  chosen = _where_present(present, axis_name, chosen, estimate)
  replaced = nearer & _is_present(present, axis_name)
  if axis_name is not None:
    replaced = jax.lax.psum(replaced.astype(jnp.int32), axis_name) > 0
  weights = None if present is None else present / len(present)

  def dense(own, messages, mean):
    del messages, mean
    return _mean(own, axis_name), jnp.float32(message_bytes(own))

  def sparse(own, messages, mean):
    del own
    mean = add_means(compressor, mean, messages, axis_name, key=key, weights=weights)
    return mean, jnp.float32(message_bytes(messages))

  mean, size = jax.lax.cond(replaced, dense, sparse, chosen, messages, mean)
  return chosen, mean, size + 4


def _is_present(present: jax.Array | None, axis_name: str | None) -> Any:
  if present is None:
    return True
  return present[0 if axis_name is None else jax.lax.axis_index(axis_name)]


def _where_present(present: jax.Array | None, axis_name: str | None, moved: Any, old: Any) -> Any:
  if present is None:
    return moved
  here = _is_present(present, axis_name)
  return jax.tree.map(lambda m, o: jnp.where(here, m, o), moved, old)


def _distance(one: Any, other: Any) -> jax.Array:
  return optax.tree.norm(jax.tree.map(jnp.subtract, one, other), squared=True)


def _sent_back(
  downlink: Compressor, mean: Any, returned: Any, key: Any, start: jax.Array
) -> tuple[Any, jax.Array]:
  """What all have received from a server, and the bytes of its message; all at the start."""
  difference = jax.tree.map(jnp.subtract, mean, returned)
  moved, _, size = exchange(downlink, (difference, returned, returned), None, key=key)
  moved = jax.tree.map(lambda m, new: jnp.where(start, m, new), mean, moved)
  return moved, jnp.where(start, jnp.float32(message_bytes(mean)), size)


def _wide(x: Any) -> Any:
  return jnp.promote_types(jnp.result_type(x), jnp.float32)
