"""Windows of sparse gradients: a ring of the last Top-k parts, with small indices.

A leaf is viewed as `[leading, rest]`, `leading` being the greatest common divisor of its first
axis and `shards`, so that a first axis sharded `shards` ways, or a divisor of it, stays where it
is. Each row is cut into blocks, and the largest entries of each block are kept.
"""

import fractions
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxrl import check

from . import _gram

DTYPES = ("bfloat16", "float32")
INT16 = jnp.iinfo(jnp.int16).max


class Blocks(NamedTuple):
  """Blocks of one size that follow each other in a row; each keeps `kept` entries."""

  count: int
  size: int
  kept: int


class Cut(NamedTuple):
  """How a leaf is cut: rows of `rest` entries, and these into blocks."""

  leading: int
  rest: int
  blocks: tuple[Blocks, ...]


class Sizes(NamedTuple):
  """The arguments that fix shapes; without a `block_size` a row is one block."""

  m: int
  density: float
  block_size: int | None
  shards: int


class Window(NamedTuple):
  """The last m sparse gradients of a leaf.

  Attributes:
    indices: where their entries stand in their blocks, `[leading, m, k]`.
    values: the entries, `[leading, m, k]`.
  """

  indices: jax.Array
  values: jax.Array


class WindowState(NamedTuple):
  """State of `sparse_mfac` and `sparse_ggt`.

  Attributes:
    count: of updates.
    gram: the inner products of the window's gradients, over all leaves.
    windows: a `Window` in place of each leaf.
    error: what was not sent yet, like the parameters.
  """

  count: jax.typing.ArrayLike
  gram: _gram.Gram
  windows: Any
  error: Any


def sizes_of(m: Any, density: Any, block_size: Any, shards: Any) -> Sizes:
  """The arguments as `Sizes`; ValueError if they are out of range."""
  check.whole("m", m, 1)
  check_density(density)
  if block_size is not None:
    check.whole("block_size", block_size, 1)
  check.whole("shards", shards, 1)
  return Sizes(m, float(density), block_size, shards)


def check_density(density: Any) -> None:
  """ValueError unless it is a number in (0, 1]."""
  if not isinstance(density, int | float) or not 0 < density <= 1:
    raise ValueError(f"density must be a number in (0, 1], got {density!r}")


def cut_of(shape: tuple[int, ...], sizes: Sizes) -> Cut:
  """How a leaf of this shape is cut."""
  size = math.prod(shape)
  leading = math.gcd(shape[0], sizes.shards) if shape and size else 1
  rest = size // leading
  block_size = min(sizes.block_size or rest, rest)
  full, tail = divmod(rest, block_size) if rest else (0, 0)
  exact = fractions.Fraction(str(sizes.density))  # of which 0.07 * 100 is 7 and not a little more

  def kept(entries):
    # Rounding rows of several shards up would cost memory in each of them.
    if leading == 1 or entries == sizes.block_size:
      return math.ceil(exact * entries)
    return max(1, math.floor(exact * entries))

  parts = ((full, block_size), (1 if tail else 0, tail))
  blocks = tuple(Blocks(count, size, kept(size)) for count, size in parts if count)
  return Cut(leading, rest, blocks)


def largest(a: jax.Array, blocks: Sequence[Blocks]) -> tuple[jax.Array, jax.Array, jax.Array]:
  """The largest entries of each block of the rows `a`, `[leading, rest]`.

  Returns:
    Which they are, `[leading, rest]`; where they stand in their blocks, in rising order; and
    their values, both `[leading, k]`.
  """
  which, indices, values = [], [], []
  start = 0
  for count, size, kept in blocks:
    stop = start + count * size
    part = a[:, start:stop].reshape(len(a), count, size)
    bits = _bits(part)
    where = _largest(bits, kept)
    which.append(_stand_at(bits, where).reshape(len(a), -1))
    indices.append(where.reshape(len(a), -1))
    values.append(take(part, where).reshape(len(a), -1))
    start = stop
  parts = [jnp.concatenate(arrays, axis=1) for arrays in (which, indices, values)]
  return parts[0], parts[1], parts[2]


def with_row(window: jax.Array, row: jax.Array, new: jax.Array) -> jax.Array:
  """The window `[leading, m, k]` with a row replaced by `new`, `[leading, k]`."""
  return jax.lax.dynamic_update_index_in_dim(window, new.astype(window.dtype), row, axis=1)


def take(blocks: jax.Array, where: jax.Array) -> jax.Array:
  """The entries of `[leading, count, size]` at `where`, `[leading, count, k]`."""
  return jax.vmap(jax.vmap(lambda block, i: block[i]))(blocks, where)


def _bits(entries: jax.Array) -> jax.Array:
  """Whole numbers in the order of the magnitudes: the bits of floats that are not negative."""
  return jax.lax.bitcast_convert_type(jnp.abs(entries.astype(jnp.float32)), jnp.int32)


def _largest(bits: jax.Array, kept: int) -> jax.Array:
  """Where the `kept` largest of each block stand, in rising order, int32; of equals, the first.

  They are in the groups with the `kept` largest maxima: first these are found, then the entries
  in them. Both rounds together read a fifth of the entries at 1 %.
  """
  size = bits.shape[-1]
  width = 1 << (math.isqrt(size // kept).bit_length() - 1)  # the power of two below
  if width < 4:  # two rounds would read as much
    return _positions(_chosen(bits, kept), kept)
  groups = jnp.pad(bits, ((0, 0), (0, 0), (0, -size % width)))  # by what no entry is smaller than
  groups = groups.reshape(*bits.shape[:-1], -1, width)
  best = _positions(_chosen(jnp.max(groups, axis=-1), kept), kept)
  candidates = take(groups, best).reshape(*bits.shape[:-1], -1)
  inside = _positions(_chosen(candidates, kept), kept)
  return take(best, inside // width) * width + inside % width


def _chosen(bits: jax.Array, kept: int) -> jax.Array:
  """Which entries are among the `kept` largest of their block; of equals, the first.

  Found by the bits of the smallest of them: a sort would gather sharded magnitudes.
  """

  def with_bit(i, threshold):
    raised = threshold | (1 << (30 - i))
    enough = _count(bits >= raised[..., None]) >= kept
    return jnp.where(enough, raised, threshold)

  threshold = jax.lax.fori_loop(0, 31, with_bit, jnp.zeros_like(bits[..., 0]))[..., None]
  above, equal = bits > threshold, bits == threshold
  left = (kept - _count(above))[..., None]
  return above | (equal & (_counted(equal) <= left))


def _stand_at(bits: jax.Array, where: jax.Array) -> jax.Array:
  """Which entries are the largest ones, given where those stand."""
  smallest = take(bits, where)
  threshold = jnp.min(smallest, axis=-1, keepdims=True)
  last = jnp.max(jnp.where(smallest == threshold, where, 0), axis=-1, keepdims=True)
  equal = (bits == threshold) & (jnp.arange(bits.shape[-1])[None, None] <= last)
  return (bits > threshold) | equal


def _count(chosen: jax.Array) -> jax.Array:
  """How many entries of each block are chosen, in as few bits as hold a block's."""
  return jnp.sum(chosen, axis=-1, dtype=index_dtype(chosen.shape[-1]))


def _counted(chosen: jax.Array) -> jax.Array:
  """How many entries are chosen up to each, in as few bits as hold a block's."""
  dtype = index_dtype(chosen.shape[-1])
  return jnp.cumsum(chosen, axis=-1, dtype=dtype)


def index_dtype(size: int) -> Any:
  """Of indices into blocks of `size` entries."""
  return jnp.int16 if size <= INT16 else jnp.int32


def _positions(chosen: jax.Array, kept: int) -> jax.Array:
  """Where the `kept` chosen entries of each block stand, in rising order, int32."""
  so_far = _counted(chosen)
  last = chosen.shape[-1] - 1
  wanted = jnp.arange(1, kept + 1, dtype=so_far.dtype)[None, None]
  bits = last.bit_length()

  def with_bit(i, position):  # the number of entries before which too few are chosen
    raised = position + (1 << (bits - 1 - i))
    return jnp.where(take(so_far, jnp.minimum(raised - 1, last)) < wanted, raised, position)

  start = jnp.zeros_like(so_far[..., :kept], dtype=jnp.int32)
  return jax.lax.fori_loop(0, bits, with_bit, start)


# Preconditioning by the window.


def preconditioner(
  sizes: Sizes, window_dtype: str, solve: Callable[[_gram.Gram, jax.Array], _gram.Weights]
) -> optax.GradientTransformationExtraArgs:
  """Error feedback, Top-k, and a sum of the window's gradients in place of the last one.

  Args:
    sizes: of the window.
    window_dtype: of its values.
    solve: `solve(gram, row)`, the weights of that sum, `row` being that of the last gradient.
  """

  def init_fn(params):
    def empty(leaf):
      cut = cut_of(jnp.shape(leaf), sizes)
      shape = (cut.leading, sizes.m, sum(b.count * b.kept for b in cut.blocks))
      dtype = index_dtype(max((b.size for b in cut.blocks), default=0))
      return Window(jnp.zeros(shape, dtype), jnp.zeros(shape, window_dtype))

    error = jax.tree.map(lambda w: jnp.zeros(jnp.shape(w), _wide(w)), params)
    windows = jax.tree.map(empty, params)
    return WindowState(jnp.zeros([], jnp.int32), _gram.empty(sizes.m), windows, error)

  def update_fn(updates, state, params=None, **extra_args):
    del params, extra_args
    row = jnp.asarray(state.count) % sizes.m
    gradients, structure = jax.tree.flatten(updates)
    cuts = [cut_of(jnp.shape(g), sizes) for g in gradients]
    errors = structure.flatten_up_to(state.error)
    sums = [g.astype(e.dtype) + e for g, e in zip(gradients, errors, strict=True)]
    olds = structure.flatten_up_to(state.windows)
    pushed = [_pushed(*each, row) for each in zip(sums, olds, cuts, strict=True)]
    kept, windows = [pair[0] for pair in pushed], [pair[1] for pair in pushed]

    size = _gram.size_of(kept)
    dots = _gram.add_parts(
      state.gram.norms,
      [
        _parts(c, window, cut, _gram.scales(state.gram, row, size), size)
        for c, window, cut in zip(kept, windows, cuts, strict=True)
      ],
    )
    gram = _gram.with_row(state.gram, row, dots, size)
    weights = solve(gram, row)
    directions = [
      _sum(c, window, cut, weights.rows) for c, window, cut in zip(kept, windows, cuts, strict=True)
    ]
    new = [
      (weights.factor * u).reshape(g.shape).astype(g.dtype)
      for u, g in zip(directions, gradients, strict=True)
    ]
    error = [a - c.reshape(a.shape) for a, c in zip(sums, kept, strict=True)]
    unflatten = structure.unflatten
    state = WindowState(
      optax.safe_increment(state.count), gram, unflatten(windows), unflatten(error)
    )
    return unflatten(new), state

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _wide(x: Any) -> Any:
  return jnp.promote_types(jnp.result_type(x), jnp.float32)


def _pushed(a: jax.Array, window: Window, cut: Cut, row: jax.Array) -> tuple[jax.Array, Window]:
  """The largest entries of `a` as the window holds them, else 0, `[leading, rest]`."""
  rows = a.reshape(cut.leading, cut.rest)
  if not a.size:
    return rows, window
  chosen, indices, values = largest(rows, cut.blocks)
  window = Window(with_row(window.indices, row, indices), with_row(window.values, row, values))
  return jnp.where(chosen, rows.astype(window.values.dtype).astype(a.dtype), 0), window


def _starts(cut: Cut) -> jax.Array:
  """Where the blocks of a row's kept entries start, `[k]`."""
  starts, start = [], 0
  for count, size, kept in cut.blocks:
    starts.append(start + size * jnp.repeat(jnp.arange(count, dtype=jnp.int32), kept))
    start += count * size
  return jnp.concatenate(starts)


def _row(window: Window, cut: Cut, j: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Positions in the rows of a leaf, and values, of the window's gradient j, `[leading, k]`."""
  indices, values = (jax.lax.dynamic_index_in_dim(x, j, axis=1, keepdims=False) for x in window)
  return _starts(cut)[None] + indices.astype(jnp.int32), values


def _parts(c: jax.Array, window: Window, cut: Cut, scales: jax.Array, size: jax.Array) -> jax.Array:
  """The inner products of `c / size` with the window's gradients over `scales`.

  `[m, leading]`: those of each row of the leaf, which may lie on a device of its own.
  """
  if not c.size:
    return jnp.zeros((len(scales), cut.leading), scales.dtype)
  c = _gram.relative(c.astype(scales.dtype), size)

  def of_row(j):
    where, values = _row(window, cut, j)
    values = _gram.relative(values.astype(scales.dtype), scales[j])
    return jnp.sum(values * jax.vmap(lambda line, i: line[i])(c, where), axis=1)

  return jax.lax.map(of_row, jnp.arange(len(scales)))


def _sum(c: jax.Array, window: Window, cut: Cut, weights: jax.Array) -> jax.Array:
  """The weighted sum of the window's gradients, `[leading, rest]`, in the weights' dtype."""
  if not c.size:
    return c.astype(weights.dtype)
  add = jax.vmap(lambda line, i, values: line.at[i].add(values, unique_indices=True))

  def add_row(j, total):
    where, values = _row(window, cut, j)
    return add(total, where, weights[j] * values.astype(weights.dtype))

  return jax.lax.fori_loop(0, len(weights), add_row, jnp.zeros_like(c, dtype=weights.dtype))
