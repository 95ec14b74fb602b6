"""Low-rank M-FAC: an inverse of the empirical Fisher matrix from factored gradients."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxrl import check, reduce

from . import _gram


class LowRankLeaf(NamedTuple):
  """What `low_rank_mfac` keeps of a matrix, its last axis being the columns.

  Attributes:
    error: what was not sent yet, `[rows, columns]`.
    left: orthonormal factors P of the window's gradients, `[rows, m, r]`.
    right: the others, Q, `[columns, m, r]`.
  """

  error: jax.Array
  left: jax.Array
  right: jax.Array


class WholeLeaf(NamedTuple):
  """What it keeps of a leaf whose factors would not be smaller: its gradients, `[size, m]`."""

  values: jax.Array


class LowRankMfacState(NamedTuple):
  """State of `low_rank_mfac`: a `LowRankLeaf` or a `WholeLeaf` in place of each leaf."""

  count: jax.typing.ArrayLike
  seed: jax.Array
  gram: _gram.Gram
  leaves: Any


def low_rank_mfac(
  m: int = 1024, rank: int = 4, damp: float = 1e-5
) -> optax.GradientTransformationExtraArgs:
  r"""The natural gradient of the last m low-rank gradients, with error feedback.

  At step t = 1, 2, ..., for each matrix, with :math:`Q_{t - 1}` of the step before,

  .. math::
    A = g + \xi, \qquad P = \mathrm{orth}(A Q_{t - 1}), \qquad Q_t = A^\top P, \qquad
    \xi \leftarrow A - P Q_t^\top,

  :math:`Q_0` being normal noise. With c the :math:`P Q_t^\top` of all matrices as one vector and
  G the last m of these,

  .. math::
    u = \Big(\lambda I + \frac1m \sum_j G_j^\top G_j\Big)^{-1} c,

  as in `sparse_mfac`. An array of more than two axes is a matrix with its last axis as columns.
  One of fewer, and a matrix whose factors would not be smaller than it, is kept whole.

  Args:
    m: gradients in the window, at least 1; those not written yet are zero, and count.
    rank: r of the factors, at least 1.
    damp: :math:`\lambda`, above 0.

  Returns:
    A gradient transformation. Momentum, weight decay and the learning rate are optax's.

  Raises:
    ValueError: an argument is out of range.

  Cost: no gradient evaluation. For a matrix :math:`4 m r` bytes a row and a column, and 4 an
    entry for the error; 4 m an entry for what is kept whole; :math:`4 (m^2 + m + 2)` in all. A
    step has :math:`2 m r` multiplications an entry, and solves a system of m equations. With
    sharded matrices :math:`2 m r^2` numbers and r columns of each cross between devices.

  Notes:
    The official code divides a small difference by :math:`\lambda`, and the damping is raised
    here where float32 can't hold it: see `sparse_mfac`. Its :math:`Q_0` is noise multiplied by
    the initial weights once. After a gradient of zero its Gram-Schmidt gives factors of zero
    for good; the orthonormal ones here are never zero. It keeps a matrix as factors also where
    they are larger than it.

  References:
    [285] Modoranu, Kalinov, Kurtic, Frantar, Alistarh, "Error Feedback Can Accurately Compress
      Preconditioners", 2023, arXiv:2306.06098

  Example:
    >>> import jax.numpy as jnp
    >>> optimizer = low_rank_mfac(m=1, rank=1, damp=0.5)
    >>> gradient = 2 * jnp.ones((3, 3))
    >>> updates, _ = optimizer.update(gradient, optimizer.init(gradient))
    >>> print(f"{updates[0, 0]:.4f}")  # 2 / (damp + 36)
    0.0548
  """
  check.whole("m", m, 1)
  check.whole("rank", rank, 1)
  check.above("damp", damp, 0)

  def init_fn(params):
    leaves = jax.tree.map(lambda w: _empty(w, m, rank), params)
    count, seed = (jnp.zeros([], jnp.int32) for _ in range(2))
    return LowRankMfacState(count, seed, _gram.empty(m), leaves)

  def update_fn(updates, state, params=None, **extra_args):
    del params, extra_args
    count = jnp.asarray(state.count)
    gradients, structure = jax.tree.flatten(updates)
    olds = structure.flatten_up_to(state.leaves)
    key = jax.random.fold_in(jax.random.key(state.seed), count)
    row = count % m
    leaves = [
      _pushed(g, leaf, count, jax.random.fold_in(key, i))
      for i, (g, leaf) in enumerate(zip(gradients, olds, strict=True))
    ]
    size = _gram.size_of([_row(leaf[-1], row) for leaf in leaves])
    scales = _gram.scales(state.gram, row, size)
    dots = sum((_dots(leaf, row, scales, size) for leaf in leaves), jnp.zeros_like(scales))
    gram = _gram.with_row(state.gram, row, dots, size)
    weights = _gram.damped_inverse(gram, row, damp)
    new = [
      (weights.factor * _sum(leaf, weights.rows)).reshape(g.shape).astype(g.dtype)
      for g, leaf in zip(gradients, leaves, strict=True)
    ]
    count = optax.safe_increment(count)
    state = LowRankMfacState(count, state.seed, gram, structure.unflatten(leaves))
    return structure.unflatten(new), state

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _empty(leaf: Any, m: int, rank: int) -> LowRankLeaf | WholeLeaf:
  shape = jnp.shape(leaf)
  dtype = jnp.promote_types(jnp.result_type(leaf), jnp.float32)
  columns = shape[-1] if shape else 1
  rows = math.prod(shape[:-1])
  if len(shape) < 2 or rank * (rows + columns) >= rows * columns:
    return WholeLeaf(jnp.zeros((math.prod(shape), m), dtype))
  left, right = (jnp.zeros((length, m, rank), dtype) for length in (rows, columns))
  return LowRankLeaf(jnp.zeros((rows, columns), dtype), left, right)


def _row(window: jax.Array, j: jax.Array) -> jax.Array:
  return jax.lax.dynamic_index_in_dim(window, j, axis=1, keepdims=False)


def _with_row(window: jax.Array, j: jax.Array, new: jax.Array) -> jax.Array:
  return jax.lax.dynamic_update_index_in_dim(window, new.astype(window.dtype), j, axis=1)


def _pushed(
  g: jax.Array, leaf: LowRankLeaf | WholeLeaf, count: jax.Array, key: jax.Array
) -> LowRankLeaf | WholeLeaf:
  """The leaf after the newest gradient took the place of the oldest."""
  m = leaf[-1].shape[1]
  if isinstance(leaf, WholeLeaf):
    return WholeLeaf(_with_row(leaf.values, count % m, g.reshape(-1)))
  a = leaf.error + g.reshape(leaf.error.shape).astype(leaf.error.dtype)
  last = _row(leaf.right, (count - 1) % m)
  noise = jax.random.normal(key, last.shape, jnp.float32).astype(last.dtype)
  start = jnp.where(count == 0, noise, _gram.relative(last, jnp.max(jnp.abs(last))))
  left, _ = jnp.linalg.qr(jnp.matmul(a, start, precision="highest"))
  right = jnp.matmul(a.T, left, precision="highest")
  return LowRankLeaf(
    a - jnp.matmul(left, right.T, precision="highest"),
    _with_row(leaf.left, count % m, left),
    _with_row(leaf.right, count % m, right),
  )


def _dots(
  leaf: LowRankLeaf | WholeLeaf, row: jax.Array, scales: jax.Array, size: jax.Array
) -> jax.Array:
  """The newest gradient over `size`, times each of the window over `scales`, `[m]`."""
  newest = _gram.relative(_row(leaf[-1], row).astype(scales.dtype), size)
  if isinstance(leaf, WholeLeaf):
    return _relative(jnp.einsum("xj,x->j", leaf.values, newest, precision="highest"), scales)
  outer = jnp.einsum("yja,yb->jab", leaf.right, newest, precision="highest")
  inner = jnp.einsum("xja,xb->jab", leaf.left, _row(leaf.left, row), precision="highest")
  return jnp.sum(inner * _relative(outer, scales[:, None, None]), axis=(1, 2))


def _relative(products: jax.Array, scales: jax.Array) -> jax.Array:
  return reduce.ratio(products, jnp.broadcast_to(scales, products.shape))


def _sum(leaf: LowRankLeaf | WholeLeaf, weights: jax.Array) -> jax.Array:
  """The weighted sum of the window's gradients."""
  if isinstance(leaf, WholeLeaf):
    return jnp.matmul(leaf.values, weights, precision="highest")
  right = leaf.right * weights[None, :, None]
  return jnp.einsum("xja,yja->xy", leaf.left, right, precision="highest")
