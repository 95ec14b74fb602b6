"""MicroAdam: Adam whose moments are made anew from a short window of sparse gradients."""

import functools
import math
import numbers
from typing import Any, NamedTuple, SupportsFloat

import jax
import jax.numpy as jnp
import optax

from jaxrl import check, reduce

from . import _window

LEVELS = 15  # the largest code of 4 bits


class CompressedLeaf(NamedTuple):
  """What `scale_by_micro_adam` keeps of a leaf, viewed as `[leading, rest]`.

  Attributes:
    indices: where the window's entries stand in their blocks, int16 `[leading, m, k]`.
    values: the window's entries, `[leading, m, k]`.
    codes: the error in 4 bits an entry, uint8 `[leading, ceil(rest / 2)]`, the first of two
      in the high ones.
    low: the error's minimum in each bucket, `[leading, buckets]`.
    high: its maximum.
  """

  indices: jax.Array
  values: jax.Array
  codes: jax.Array
  low: jax.Array
  high: jax.Array


class MicroAdamState(NamedTuple):
  """State of `scale_by_micro_adam`: a `CompressedLeaf` in place of each leaf."""

  count: jax.typing.ArrayLike
  leaves: Any


class _Cut(NamedTuple):
  """How a leaf is cut: rows of `rest` entries, these into blocks and into buckets."""

  leading: int
  rest: int
  blocks: tuple[_window.Blocks, ...]
  bucket: int


def scale_by_micro_adam(
  m: int = 10,
  density: SupportsFloat = 0.01,
  *,
  block_size: int = 4096,
  quant_block_size: int = 64,
  b1: float = 0.9,
  b2: float = 0.999,
  eps: float = 1e-8,
  alpha: float = 0.0,
  window_dtype: str = "bfloat16",
  stats_dtype: str = "bfloat16",
  shards: int = 8,
) -> optax.GradientTransformationExtraArgs:
  r"""Adam's direction from the last m sparse gradients, with 4-bit error feedback.

  At step t = 1, 2, ..., for each leaf,

  .. math::
    a &= g + Q^{-1}(e), \qquad
    (I_r, V_r) = \mathrm{TopK}(a), \quad r = (t - 1) \bmod m, \qquad
    e \leftarrow Q(a - V_r) \\
    \hat m &= \frac{1 - b_1}{1 - b_1^t} \sum_j b_1^{(t - 1 - j) \bmod m} V_j, \qquad
    \hat v = \frac{1 - b_2}{1 - b_2^t} \sum_j b_2^{(t - 1 - j) \bmod m} V_j^2, \qquad
    u = \frac{\hat m}{\sqrt{\hat v} + \epsilon}

  TopK keeps the largest :math:`|a|` of each block, the sums run over the rows of the window
  that are written, each row scattered to its indices :math:`I_j`, and u is 0 where they have
  no entry. Q rounds each bucket to 16 levels between its minimum and maximum. With
  :math:`\alpha > 0` steps are dense:

  .. math::
    u \leftarrow u + \alpha Q^{-1}(e), \qquad e \leftarrow Q((1 - \alpha) Q^{-1}(e)).

  Args:
    m: gradients in the window, at least 1.
    density: fraction of each block's entries to keep, in (0, 1], rounded up to whole entries.
      It fixes shapes: under `optax.inject_hyperparams` it is a static argument.
    block_size: entries of a block, in [1, 32767], so that indices have 16 bits.
    quant_block_size: entries of a bucket, even, at least 2.
    b1: decay of the first moment, in [0, 1).
    b2: decay of the second moment, in [0, 1).
    eps: :math:`\epsilon`, at least 0.
    alpha: share :math:`\alpha` of the error that each step applies, in [0, 1).
    window_dtype: of the window's values, "bfloat16" or "float32".
    stats_dtype: of the buckets' minima and maxima, "bfloat16" or "float32".
    shards: a leaf is viewed as `[leading, rest]`, `leading` the greatest common divisor of its
      first axis and `shards`, and cut into blocks along `rest`, so that a first axis sharded
      `shards` ways, or a divisor of it, stays where it is.

  Returns:
    A gradient transformation.

  Raises:
    ValueError: an argument is out of range.

  Cost: no gradient evaluation; 0.5 + 4 m density + 4 / quant_block_size bytes a parameter,
    0.963 by default and 0.901 with buckets of 100,000 entries. No array of the size of the
    parameters outlives a step besides the codes. The largest entries are found by bisection
    instead of a sort, which would gather sharded ones: about eight readings of the gradient.

  Notes:
    It follows the official CUDA code, with these differences. All arithmetic is in float32;
    there a, :math:`Q^{-1}(e)` and u are rounded to bfloat16, in the gradient's own buffer.
    Codes are clipped to 0..15, and a bucket whose entries are all equal has codes 0 (there: a
    division by zero). Blocks have 4096 entries instead of half a GPU's shared memory. A last
    block or a row shorter than `block_size` keeps a number of entries that is rounded up
    there; here it is rounded down, to at least 1, where a leaf is cut into several rows, lest
    each row's rounding cost memory. `shards=1` cuts as the official code does. Its `alpha=-2`
    is left out.

    A window shorter than :math:`1 / (1 - b_2)` makes steps larger than Adam's: under a
    constant gradient :math:`|u| \to (1 - b_1^m) / \sqrt{1 - b_2^m}`, 6.5 by default. With
    `density=1`, `window_dtype="float32"` and m not below the number of steps it is Adam.
    A block of 4096 entries that a few more follow costs 0.974 bytes a parameter.

  References:
    [191] Modoranu, Safaryan, Malinovsky, Kurtic, Robert, Richtarik, Alistarh, "MicroAdam:
      Accurate Adaptive Optimization with Low Space Overhead and Provable Convergence", 2024,
      arXiv:2405.15593

  Example:
    >>> import jax.numpy as jnp
    >>> optimizer = scale_by_micro_adam(density=0.25, shards=1)
    >>> gradient = jnp.array([0.5, -2.0, 1.0, 0.0])
    >>> state = optimizer.init(gradient)
    >>> updates, _ = optimizer.update(gradient, state)
    >>> print(jnp.round(updates, 4))  # the largest entry only
    [ 0. -1.  0.  0.]
  """
  check.whole("block_size", block_size, 1)
  check.between("block_size", block_size, 1, _window.INT16)
  check.whole("quant_block_size", quant_block_size, 2)
  if quant_block_size % 2:
    raise ValueError(f"quant_block_size must be even, got {quant_block_size!r}")
  check.below("b1", b1, 0, 1)
  check.below("b2", b2, 0, 1)
  check.at_least("eps", eps, 0)
  check.below("alpha", alpha, 0, 1)
  check.one_of("window_dtype", window_dtype, _window.DTYPES)
  check.one_of("stats_dtype", stats_dtype, _window.DTYPES)
  sizes = _window.sizes_of(m, density, block_size, shards)
  sparse = isinstance(alpha, numbers.Real) and alpha == 0

  def cut_of(shape):
    return _cut(shape, sizes, quant_block_size)

  def init_fn(params):
    def empty(leaf):
      return _empty(cut_of(jnp.shape(leaf)), m, window_dtype, stats_dtype)

    return MicroAdamState(jnp.zeros([], jnp.int32), jax.tree.map(empty, params))

  def update_leaf(g, leaf, before):
    cut = cut_of(g.shape)
    if not g.size:
      return g, leaf
    a = g.astype(jnp.float32).reshape(cut.leading, cut.rest) + _decoded(leaf, cut)
    leaf = _encoded(_pushed(a, leaf, cut, before % m), cut)
    u = _direction(leaf, cut, before, b1=b1, b2=b2, eps=eps)
    if not sparse:
      error = _decoded(leaf, cut)
      u, leaf = u + alpha * error, _encoded(((1 - alpha) * error, leaf), cut)
    return u.reshape(g.shape).astype(g.dtype), leaf

  def update_fn(updates, state, params=None, **extra_args):
    del params, extra_args
    before = jnp.asarray(state.count)
    gradients, structure = jax.tree.flatten(updates)
    leaves = structure.flatten_up_to(state.leaves)
    done = []
    for g, leaf in zip(gradients, leaves, strict=True):
      # The condition always holds. In a branch a leaf's temporaries are given back before the
      # next leaf's are taken; without one XLA would hold those of all leaves at once.
      step = functools.partial(update_leaf, before=before)
      done.append(jax.lax.cond(before >= 0, step, lambda *same: same, g, leaf))
    updates, leaves = ([pair[i] for pair in done] for i in range(2))
    state = MicroAdamState(optax.safe_increment(before), structure.unflatten(leaves))
    return structure.unflatten(updates), state

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def micro_adam(
  learning_rate: float | optax.Schedule,
  m: int = 10,
  density: SupportsFloat = 0.01,
  *,
  block_size: int = 4096,
  quant_block_size: int = 64,
  b1: float = 0.9,
  b2: float = 0.999,
  eps: float = 1e-8,
  weight_decay: float = 0.0,
  alpha: float = 0.0,
  window_dtype: str = "bfloat16",
  stats_dtype: str = "bfloat16",
  shards: int = 8,
) -> optax.GradientTransformationExtraArgs:
  r"""MicroAdam with decoupled weight decay: AdamW in a byte a parameter.

  With u from `scale_by_micro_adam`,

  .. math::
    w \leftarrow (1 - \eta \lambda) w - \eta u.

  Args:
    learning_rate: :math:`\eta`, at least 0, or a schedule of the step count. The paper
      fine-tunes BERT, OPT and Llama-2 7B at 4e-5 or less, below Adam's.
    m: as in `scale_by_micro_adam`, like what follows.
    density: fraction of each block's entries to keep, in (0, 1].
    block_size: entries of a block, in [1, 32767].
    quant_block_size: entries of a bucket, even; the paper takes 64 for Llama and 100,000 for
      BERT and OPT.
    b1: decay of the first moment, in [0, 1).
    b2: decay of the second moment, in [0, 1).
    eps: :math:`\epsilon`, at least 0.
    weight_decay: :math:`\lambda`, at least 0.
    alpha: share of the error that each step applies, in [0, 1); above 0 for pretraining.
    window_dtype: "bfloat16" or "float32".
    stats_dtype: "bfloat16" or "float32".
    shards: ways in which a first axis may be sharded.

  Returns:
    A recipe whose `update` needs `params`.

  Raises:
    ValueError: an argument is out of range, or `update` was called without `params`.

  Cost: that of `scale_by_micro_adam`.

  References:
    [191] Modoranu, Safaryan, Malinovsky, Kurtic, Robert, Richtarik, Alistarh, "MicroAdam:
      Accurate Adaptive Optimization with Low Space Overhead and Provable Convergence", 2024,
      arXiv:2405.15593

  Example:
    >>> import jax.numpy as jnp
    >>> optimizer = micro_adam(0.1, density=0.25, weight_decay=0.5, shards=1)
    >>> gradient, params = jnp.array([0.5, -2.0, 1.0, 0.0]), jnp.ones(4)
    >>> updates, _ = optimizer.update(gradient, optimizer.init(params), params)
    >>> print(jnp.round(updates, 4))
    [-0.05  0.05 -0.05 -0.05]
  """
  check.at_least("learning_rate", learning_rate, 0)
  check.at_least("weight_decay", weight_decay, 0)
  direction = scale_by_micro_adam(
    m,
    density,
    block_size=block_size,
    quant_block_size=quant_block_size,
    b1=b1,
    b2=b2,
    eps=eps,
    alpha=alpha,
    window_dtype=window_dtype,
    stats_dtype=stats_dtype,
    shards=shards,
  )
  decay = optax.add_decayed_weights(weight_decay)
  return optax.chain(direction, decay, optax.scale_by_learning_rate(learning_rate))


def _cut(shape: tuple[int, ...], sizes: _window.Sizes, quant_block_size: int) -> _Cut:
  cut = _window.cut_of(shape, sizes)
  return _Cut(*cut, min(quant_block_size, cut.rest + cut.rest % 2))


def _empty(cut: _Cut, m: int, window_dtype: str, stats_dtype: str) -> CompressedLeaf:
  window = (cut.leading, m, sum(blocks.count * blocks.kept for blocks in cut.blocks))
  ranges = (cut.leading, math.ceil(cut.rest / cut.bucket) if cut.rest else 0)
  return CompressedLeaf(
    jnp.zeros(window, jnp.int16),
    jnp.zeros(window, window_dtype),
    jnp.zeros((cut.leading, math.ceil(cut.rest / 2)), jnp.uint8),
    jnp.zeros(ranges, stats_dtype),
    jnp.zeros(ranges, stats_dtype),
  )


# The error: 4 bits an entry.


def _decoded(leaf: CompressedLeaf, cut: _Cut) -> jax.Array:
  """The error, float32 `[leading, rest]`."""
  codes = jnp.stack([leaf.codes >> 4, leaf.codes & LEVELS], axis=-1)
  codes = codes.reshape(cut.leading, -1)
  low, span = _range(leaf)
  missing = leaf.low.shape[1] * cut.bucket - codes.shape[1]
  buckets = jnp.pad(codes, ((0, 0), (0, missing))).reshape(*leaf.low.shape, cut.bucket)
  # With 20 bits the product is exact, and the error the same wherever XLA computes it again,
  # fused or not: what is chosen below must not depend on that.
  step = jax.lax.reduce_precision(span / LEVELS, exponent_bits=8, mantissa_bits=19)
  error = buckets.astype(jnp.float32) * step + low
  return error.reshape(cut.leading, -1)[:, : cut.rest]


def _encoded(error_and_leaf: tuple[jax.Array, CompressedLeaf], cut: _Cut) -> CompressedLeaf:
  """The leaf with another error, `[leading, rest]`."""
  error, leaf = error_and_leaf
  missing = -cut.rest % cut.bucket
  # By repeating the last entry, which changes no bucket's range.
  buckets = jnp.pad(error, ((0, 0), (0, missing)), mode="edge")
  buckets = buckets.reshape(cut.leading, -1, cut.bucket)
  leaf = leaf._replace(
    low=_over_buckets(jnp.min, buckets).astype(leaf.low.dtype),
    high=_over_buckets(jnp.max, buckets).astype(leaf.high.dtype),
  )
  low, span = _range(leaf)
  # In this order the ties of zeros between opposite ends are exact, and break the same way always.
  codes = jnp.floor(reduce.ratio((buckets - low) * LEVELS, span) + 0.5)
  codes = jnp.clip(codes, 0, LEVELS).astype(jnp.uint8).reshape(cut.leading, -1, 2)
  packed = (codes[..., 0] << 4) | codes[..., 1]
  return leaf._replace(codes=packed[:, : leaf.codes.shape[1]])


def _over_buckets(reduction: Any, buckets: jax.Array) -> jax.Array:
  """`reduction` over the last axis, in two steps: the first is one of whole vectors."""
  columns = math.gcd(buckets.shape[-1], 16)
  rows = buckets.reshape(*buckets.shape[:-1], -1, columns)
  return reduction(reduction(rows, axis=-2), axis=-1)


def _range(leaf: CompressedLeaf) -> tuple[jax.Array, jax.Array]:
  """Each bucket's minimum, and how far its maximum is from there, `[leading, buckets, 1]`."""
  low, high = (side.astype(jnp.float32)[..., None] for side in (leaf.low, leaf.high))
  return low, high - low


# The window: m sparse gradients.


def _pushed(
  a: jax.Array, leaf: CompressedLeaf, cut: _Cut, row: jax.Array
) -> tuple[jax.Array, CompressedLeaf]:
  """What stays of `a` without its largest entries, which take a row of the window."""
  chosen, indices, values = _window.largest(a, cut.blocks)
  leaf = leaf._replace(
    indices=_window.with_row(leaf.indices, row, indices),
    values=_window.with_row(leaf.values, row, values),
  )
  return jnp.where(chosen, 0, a), leaf


# The moments: sums over the window.


def _direction(
  leaf: CompressedLeaf, cut: _Cut, before: jax.Array, *, b1: Any, b2: Any, eps: Any
) -> jax.Array:
  """Adam's direction, `[leading, rest]`, after `before` earlier steps."""
  parts = []
  start = 0
  for blocks in cut.blocks:
    stop = start + blocks.count * blocks.kept
    indices, values = leaf.indices[..., start:stop], leaf.values[..., start:stop]
    first, second = _moments(indices, values, blocks, before, b1, b2)
    steps = (before + 1).astype(jnp.float32)
    mean = (1 - b1) / (1 - b1**steps) * first
    square = (1 - b2) / (1 - b2**steps) * second
    direction = reduce.ratio(mean, jnp.sqrt(square) + eps)
    parts.append(direction.reshape(cut.leading, -1))
    start = stop
  return jnp.concatenate(parts, axis=1)


def _moments(
  indices: jax.Array, values: jax.Array, blocks: _window.Blocks, before: jax.Array, b1: Any, b2: Any
) -> tuple[jax.Array, jax.Array]:
  """Sums of the window's rows and of their squares by age, `[leading, count, size]`."""
  m = indices.shape[1]
  scatter = jax.vmap(jax.vmap(lambda total, i, value: total.at[i].add(value)))

  def row_of(window, j):
    row = jax.lax.dynamic_index_in_dim(window, j, axis=1, keepdims=False)
    return row.reshape(-1, blocks.count, blocks.kept)

  def add_row(j, moments):
    where, value = row_of(indices, j), row_of(values, j).astype(jnp.float32)
    age = ((before - j) % m).astype(jnp.float32)
    first, second = moments
    return scatter(first, where, b1**age * value), scatter(second, where, b2**age * value**2)

  # Like the values, so that under shard_map they vary where these do.
  zero = jnp.zeros_like(values[:, :1, :1], dtype=jnp.float32)
  shape = (values.shape[0], blocks.count, blocks.size)
  return jax.lax.fori_loop(0, m, add_row, (jnp.broadcast_to(zero, shape),) * 2)
