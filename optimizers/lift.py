"""LIFT: fine-tune the few weights that are largest in a low-rank approximation of their matrix."""

import functools
import math
import numbers
from typing import Any, NamedTuple, SupportsFloat

import jax
import jax.numpy as jnp
import optax

from jaxrl import check, reduce

from ._largest import largest, position
from ._sharpness import path_of
from .compressors._compressor import Draws, key_of, start_draws
from .compressors._sparse import entries_of

SVDS = ("exact", "randomized")


class LiftLeaf(NamedTuple):
  """What `lift` keeps of a matrix: k entries.

  Attributes:
    indices: where they stand in the flattened matrix, rising, int32 `[k]`.
    mu: the first moments of their gradients, float32 `[k]`.
    nu: the second moments.
  """

  indices: jax.Array
  mu: jax.Array
  nu: jax.Array


class LiftState(NamedTuple):
  """State of `lift`: a `LiftLeaf` in place of each matrix, and `()` of what is frozen."""

  count: jax.typing.ArrayLike
  draws: Draws | tuple[()]
  leaves: Any


def lift(
  learning_rate: float | optax.Schedule,
  lora_rank: int = 128,
  filter_rank: int = 128,
  update_interval: int = 200,
  *,
  density: SupportsFloat | None = None,
  b1: float = 0.9,
  b2: float = 0.95,
  eps: float = 1e-6,
  weight_decay: float = 0.0,
  svd: str = "exact",
  power_iterations: int = 2,
  exclude: str = "bias|[Ee]mbed|positions|lm_head",
) -> optax.GradientTransformationExtraArgs:
  r"""Adam on the principal weights alone: the others neither move nor have moments.

  For each matrix :math:`W [a, b]`, in the first step and before every step whose number is a
  multiple of the interval,

  .. math::
    W' = \sum_{j \le r} \sigma_j u_j v_j^\top, \qquad
    I = \mathrm{TopK}_k(|W'|), \qquad k = \min((a + b) \, r_{LoRA}, a b),

  the moments staying with the entries that are chosen again and starting at 0 for new ones.
  Then, for the entries in I at step t = 1, 2, ...,

  .. math::
    m \leftarrow b_1 m + (1 - b_1) g, \qquad v \leftarrow b_2 v + (1 - b_2) g^2, \qquad
    w \leftarrow (1 - \eta \lambda) w
      - \eta \frac{\sqrt{1 - b_2^t}}{1 - b_1^t} \, \frac{m}{\sqrt v + \epsilon}.

  What has fewer than two axes (scales of normalisation layers, most biases) and what `exclude`
  names is frozen: its updates are 0. A kernel of more than two axes is a matrix, cut between
  the axes where it is closest to a square: the patches and the channels of a convolution, the
  inputs and all heads of an attention.

  Args:
    learning_rate: :math:`\eta`, at least 0, or a schedule of the step count; the paper lets
      1e-4 or 2e-4 fall linearly.
    lora_rank: :math:`r_{LoRA}`: as many entries are trained as LoRA of this rank would have,
      at least 1.
    filter_rank: the rank r of the approximation, at least 1; 32 to 128 in the paper.
    update_interval: steps from one choice to the next, at least 1; 10 to 400 in the paper.
    density: the fraction of each matrix that is trained, in (0, 1], rounded up to whole
      entries, in place of `lora_rank`; 0.05 in the paper's text. Like the ranks it fixes
      shapes: under `optax.inject_hyperparams` it is a static argument.
    b1: decay of the first moment, in [0, 1).
    b2: decay of the second moment, in [0, 1).
    eps: :math:`\epsilon`, at least 0.
    weight_decay: :math:`\lambda`, at least 0, of the entries in I.
    svd: "exact", or "randomized" by a subspace of 2r dimensions.
    power_iterations: of the randomised one, at least 0: the more, the closer it is.
    exclude: a regular expression, found anywhere in the path of a parameter
      (`Embed_0/embedding`) that is frozen.

  Returns:
    A recipe whose `update` needs `params`.

  Raises:
    ValueError: an argument is out of range, a matrix has more than 2147483647 entries, or
      `update` was called without `params`.

  Cost: no gradient evaluation; 12 bytes for each entry that is trained, none for the rest. To
  choose takes a singular value decomposition of each matrix, one after the other, or
  `2 (power_iterations + 2)` products of it with 2r vectors, and then 32 readings of
  :math:`W'`; temporaries are five times the size of the matrix. The randomised choice leaves a
  sharded matrix where it is: with its rows over the devices, these exchange sums `[b, 2r]` and
  k indices, where the exact one gathers it. Every step adds up k gradients over the devices.
  Under `vmap` with a count for each member all choose in every step.

  Notes:
    The choice and its timing, the moments and :math:`\epsilon`, which the bias correction does
    not touch, are those of the official code, so the first interval is a step shorter. Its
    weight decay is written to a copy and does nothing; here it works. Its configurations ask
    for `lift_sparse`, by which the code in its present state takes the smallest
    :math:`|W'|`; the paper, and the first release (by another name), take the largest. Of
    equals the first are taken.

    Like the official code it freezes embeddings, `lm_head`, biases and norms; `exclude` finds
    the embeddings by their names, and biases because those of attention heads have two axes.
    A new head has to be trained: leave it in (it is a matrix), or train it by another
    optimizer, with `optax.partition`. `optax.masked` alone would add raw gradients to what it
    leaves out. Layers that are stacked along a leading axis would be taken for one matrix.

    The randomised decomposition is a subspace iteration from the right, with torch's
    `svd_lowrank` as model. It tells singular vectors apart down to about 3e-4 of the largest
    singular value, where they hardly matter to :math:`W'`.

  References:
    [109] Liu, Pang, Balabanov, Yang, Huang, Yin, Yang, Liu, "LIFT the Veil for the Truth:
      Principal Weights Emerge after Rank Reduction for Reasoning-Focused Supervised
      Fine-Tuning", 2025, arXiv:2506.00772

  Example:
    >>> import jax.numpy as jnp
    >>> params = {"kernel": jnp.array([[3.0, 1.0], [2.0, 0.0]]), "bias": jnp.ones(2)}
    >>> optimizer = lift(0.5, filter_rank=1, density=0.5)
    >>> updates, _ = optimizer.update(params, optimizer.init(params), params)
    >>> print(jnp.round(updates["kernel"], 4) + 0.0)  # of W' the first column is the largest
    [[-0.5  0. ]
     [-0.5  0. ]]
    >>> print(updates["bias"] + 0.0)
    [0. 0.]
  """
  check.at_least("learning_rate", learning_rate, 0)
  check.whole("lora_rank", lora_rank, 1)
  check.whole("filter_rank", filter_rank, 1)
  check.whole("update_interval", update_interval, 1)
  if density is not None and (not isinstance(density, int | float) or not 0 < density <= 1):
    raise ValueError(f"density must be a number in (0, 1], got {density!r}")
  check.below("b1", b1, 0, 1)
  check.below("b2", b2, 0, 1)
  check.at_least("eps", eps, 0)
  check.at_least("weight_decay", weight_decay, 0)
  check.one_of("svd", svd, SVDS)
  check.whole("power_iterations", power_iterations, 0)
  pattern = check.regex("exclude", exclude)
  decays = not isinstance(weight_decay, numbers.Real) or weight_decay != 0
  choose = functools.partial(
    _chosen_anew, filter_rank=filter_rank, power_iterations=power_iterations
  )

  def entries(shape):
    rows, columns = _matrix(shape)
    if density is not None:
      return entries_of(float(density))(rows * columns)
    return min((rows + columns) * lora_rank, rows * columns)

  def init_fn(params):
    def empty(path, leaf):
      shape = jnp.shape(leaf)
      if len(shape) < 2 or 0 in shape or pattern.search(path_of(path)):
        return ()
      k = entries(shape)
      return LiftLeaf(jnp.arange(k, dtype=jnp.int32), *jnp.zeros((2, k), jnp.float32))

    return LiftState(
      jnp.zeros([], jnp.int32),
      start_draws(random=svd == "randomized"),
      jax.tree_util.tree_map_with_path(empty, params),
    )

  def update_leaf(g, w, leaf, before):
    values = _take(g, leaf.indices)
    mu = b1 * leaf.mu + (1 - b1) * values
    nu = b2 * leaf.nu + (1 - b2) * values**2
    steps = (before + 1).astype(jnp.float32)
    correction = jnp.sqrt(1 - b2**steps) / (1 - b1**steps)
    u = correction * reduce.ratio(mu, jnp.sqrt(nu) + eps)
    if decays:
      u = u + weight_decay * _take(w, leaf.indices)
    at = jnp.zeros(g.size, g.dtype).at[leaf.indices]
    dense = at.set(u.astype(g.dtype), indices_are_sorted=True, unique_indices=True)
    return dense.reshape(g.shape), LiftLeaf(leaf.indices, mu, nu)

  def update_fn(updates, state, params=None, **extra_args):
    del extra_args
    check.params("lift", params)
    before = jnp.asarray(state.count)
    key = key_of(state.draws, before)
    anew = (before == 0) | ((before + 1) % update_interval == 0)
    gradients, structure = jax.tree.flatten(updates)
    done = []
    for i, (g, w, leaf) in enumerate(
      zip(gradients, *map(structure.flatten_up_to, (params, state.leaves)), strict=True)
    ):
      if not isinstance(leaf, LiftLeaf):
        done.append((jnp.zeros_like(g), leaf))
        continue
      own_key = None if key is None else jax.random.fold_in(key, i)
      leaf = jax.lax.cond(anew, choose, lambda leaf, *_: leaf, leaf, w, own_key)
      done.append(update_leaf(g, w, leaf, before))
    updates, leaves = ([pair[i] for pair in done] for i in range(2))
    state = LiftState(optax.safe_increment(before), state.draws, structure.unflatten(leaves))
    return structure.unflatten(updates), state

  direction = optax.GradientTransformationExtraArgs(init_fn, update_fn)
  return optax.chain(direction, optax.scale_by_learning_rate(learning_rate))


def principal_weight_mask(
  w: jax.Array,
  filter_rank: int,
  k: int,
  *,
  key: jax.Array | None = None,
  power_iterations: int = 2,
) -> jax.Array:
  r"""The k entries of a matrix that are largest in its approximation by one of low rank.

  Args:
    w: the matrix `[a, b]`, or a kernel of more axes, as `lift` takes it.
    filter_rank: the rank r of the approximation, at least 1.
    k: how many entries, in [1, a b].
    key: of a randomised decomposition; without one it is exact.
    power_iterations: of the randomised one, at least 0.

  Returns:
    Booleans of the shape of `w`, k of them true.

  Raises:
    ValueError: `w` has fewer than two axes or too many entries, or another argument is out
      of range.

  References:
    [109] Liu, Pang, Balabanov, Yang, Huang, Yin, Yang, Liu, "LIFT the Veil for the Truth:
      Principal Weights Emerge after Rank Reduction for Reasoning-Focused Supervised
      Fine-Tuning", 2025, arXiv:2506.00772

  Example:
    >>> import jax.numpy as jnp
    >>> w = jnp.array([[4.0, 3.0, 0.0], [3.0, 4.0, 0.0], [0.0, 0.0, 5.0]])
    >>> print(principal_weight_mask(w, filter_rank=1, k=4))  # 3.5 in all corners of the block
    [[ True  True False]
     [ True  True False]
     [False False False]]
    >>> print(principal_weight_mask(w, filter_rank=3, k=1))  # that of plain magnitudes
    [[False False False]
     [False False False]
     [False False  True]]
  """
  check.whole("filter_rank", filter_rank, 1)
  check.whole("k", k, 1)
  check.between("k", k, 1, w.size)
  check.whole("power_iterations", power_iterations, 0)
  matrix = w.astype(jnp.float32).reshape(_matrix(w.shape))
  approximation = _low_rank(matrix, filter_rank, key, power_iterations)
  (chosen,) = largest([jnp.abs(approximation)], k)
  return chosen.reshape(w.shape)


def _matrix(shape: tuple[int, ...]) -> tuple[int, int]:
  """Rows and columns of a kernel as a matrix."""
  if len(shape) < 2:
    raise ValueError(f"w must have at least two axes, got shape {shape}")
  if math.prod(shape) > jnp.iinfo(jnp.int32).max:
    raise ValueError(f"a matrix must have at most 2147483647 entries, got shape {shape}")
  cuts = [(math.prod(shape[:i]), math.prod(shape[i:])) for i in range(1, len(shape))]
  return min(cuts, key=sum)  # of equal products the most square has the smallest sum


def _low_rank(
  matrix: jax.Array, rank: int, key: jax.Array | None, power_iterations: int
) -> jax.Array:
  if rank >= min(matrix.shape):
    return matrix
  if key is not None:
    basis = _right_vectors(matrix, rank, key, power_iterations)
    return _dot(_dot(matrix, basis), basis.T)
  left, values, right = jnp.linalg.svd(matrix, full_matrices=False)
  return _dot(left[:, :rank] * values[None, :rank], right[:rank])


def _right_vectors(
  matrix: jax.Array, rank: int, key: jax.Array, power_iterations: int
) -> jax.Array:
  """The leading right singular vectors, `[b, rank]`, by a subspace of twice their number.

  Only what has no axis of length a is decomposed: that one may be sharded.
  """
  width = min(2 * rank, *matrix.shape)

  def basis_of(image):  # of the span of the rows that make up `image [a, width]`
    return jnp.linalg.qr(_dot(matrix.T, image))[0]

  def iterate(_, image):
    return _dot(matrix, basis_of(image))

  image = jax.random.normal(key, (matrix.shape[0], width), jnp.float32)
  basis = basis_of(jax.lax.fori_loop(0, power_iterations, iterate, image))
  image = _dot(matrix, basis)
  _, vectors = jnp.linalg.eigh(_dot(image.T, image))
  return _dot(basis, vectors[:, -rank:])


def _dot(left: jax.Array, right: jax.Array) -> jax.Array:
  return jnp.matmul(left, right, precision="highest")


def _chosen_anew(
  leaf: LiftLeaf, w: jax.Array, key: jax.Array | None, *, filter_rank: int, power_iterations: int
) -> LiftLeaf:
  """The leaf with the entries that `w` has now, and the moments of those it had before."""
  k = leaf.indices.size
  chosen = principal_weight_mask(w, filter_rank, k, key=key, power_iterations=power_iterations)
  indices = _indices(chosen, k)
  at = jnp.minimum(jnp.searchsorted(leaf.indices, indices), k - 1)
  stays = leaf.indices[at] == indices
  mu, nu = (jnp.where(stays, moment[at], 0) for moment in (leaf.mu, leaf.nu))
  return LiftLeaf(indices, mu, nu)


def _indices(chosen: jax.Array, k: int) -> jax.Array:
  """Where the k chosen entries stand, rising, int32."""
  rows = chosen.reshape(chosen.shape[0], -1)
  flat = jnp.arange(chosen.size, dtype=jnp.int32).reshape(rows.shape)
  slot = jnp.where(rows, position(rows) - 1, k)  # k is past the end and dropped
  # Each slot is added to once. Sums of shards can be added up, which sets could not.
  return jnp.zeros(k, jnp.int32).at[slot].add(flat, mode="drop")


def _take(x: jax.Array, indices: jax.Array) -> jax.Array:
  return x.reshape(-1)[indices].astype(jnp.float32)
