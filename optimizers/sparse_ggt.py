"""Sparse GGT: full-matrix adaptive steps within the span of compressed gradients."""

from typing import Any, SupportsFloat

import jax
import jax.numpy as jnp
import optax

from jaxrl import check, reduce

from . import _gram, _window


def sparse_ggt(
  m: int = 100,
  density: SupportsFloat = 0.01,
  eps: float = 1e-8,
  *,
  jitter: float = 0.0,
  block_size: int | None = 4096,
  window_dtype: str = "float32",
  shards: int = 8,
) -> optax.GradientTransformationExtraArgs:
  r"""Full-matrix AdaGrad over the last m sparse gradients, with error feedback.

  At step t = 1, 2, ..., over all leaves as one vector,

  .. math::
    a &= g + \xi, \qquad c = \mathrm{TopK}(a), \qquad \xi \leftarrow a - c, \qquad
    G_r \leftarrow c, \quad r = (t - 1) \bmod m \\
    u &= \Big(\big(\textstyle\sum_j G_j^\top G_j\big)^{1/2} + \epsilon I\Big)^{-1} c
      = G^\top V \mathrm{diag}(f) V^\top e_r, \qquad f_i = \frac1{s_i + \epsilon}, \qquad
    G G^\top = V \mathrm{diag}(s^2) V^\top

  TopK keeps the largest :math:`|a|` of each block. The window G holds its rows as indices and
  values. Of :math:`G G^\top` a step makes one row and column anew.

  Args:
    m: gradients in the window, at least 1.
    density: fraction of each block's entries to keep, in (0, 1], rounded up to whole entries.
      It fixes shapes: under `optax.inject_hyperparams` it is a static argument.
    eps: :math:`\epsilon`, above 0.
    jitter: :math:`\delta`, at least 0, what the official code adds to the diagonal of
      :math:`G G^\top`, 1e-6 there. See the Notes.
    block_size: entries of a block, at least 1, or `None` for one block a row of the leaf's
      view. Up to 32767 entries indices have 16 bits, else 32.
    window_dtype: of the window's values, "float32" or "bfloat16". What this rounds off stays in
      the error.
    shards: ways in which a first axis may be sharded, as in `sparse_mfac`.

  Returns:
    A gradient transformation. Momentum, weight decay and the learning rate are optax's; the
    official code decays weights by way of the gradient, `add_decayed_weights` before this.

  Raises:
    ValueError: an argument is out of range.

  Cost: no gradient evaluation. 4 bytes a parameter for the error; m k (2 + 4) for a window of k
    entries a row, 2 + 2 in bfloat16 and two more with 32-bit indices; :math:`4 (m^2 + m + 1)` in
    all for the Gram matrix and the count. By default that is 10 bytes a parameter, where
    dense GGT takes 400. A step reads the window twice and takes the eigenvectors of an m x m
    matrix. With sharded parameters m + 1 floats cross between devices for each kind of
    `leading`.

  Notes:
    With the jitter :math:`\delta` the official direction is, for
    :math:`s_i^2 = \lambda_i + \delta`,

    .. math::
      f_i = \frac{1 - \rho_i}{s_i + \epsilon} + \frac{\rho_i}{\epsilon}, \qquad
      \rho_i = \delta / s_i^2.

    The second term comes from :math:`(I - U U^\top) c / \epsilon`, which is zero without the
    jitter, as c lies in the span of the window. With it and :math:`\epsilon = 10^{-8}` it is
    most of the step: the direction is tens of times longer, and close to c itself.

    In float32 eigenvalues are known to :math:`m \cdot 1.2 \cdot 10^{-7}` of the largest only,
    and are raised to that; where jax has float64 enabled, the m x m part is in float64 whatever
    the parameters' dtype. A gradient thousands of times longer than the others thus shortens
    their steps until it leaves the window.

    GGT's momentum and its decay of old gradients have no part in the sparse official class,
    nor here.

  References:
    [285] Modoranu, Kalinov, Kurtic, Frantar, Alistarh, "Error Feedback Can Accurately Compress
      Preconditioners", 2023, arXiv:2306.06098

    Baseline: Agarwal, Bullins, Chen, Hazan, Singh, Zhang, Zhang, "Efficient Full-Matrix Adaptive
      Regularization", 2018, arXiv:1806.02958

  Example:
    >>> import jax.numpy as jnp
    >>> optimizer = sparse_ggt(m=2, density=0.5)
    >>> gradient = jnp.array([[0.5, -2.0]])
    >>> updates, state = optimizer.update(gradient, optimizer.init(gradient))
    >>> print(updates, state.error)
    [[ 0. -1.]] [[0.5 0. ]]
  """
  check.above("eps", eps, 0)
  check.at_least("jitter", jitter, 0)
  check.one_of("window_dtype", window_dtype, _window.DTYPES)
  sizes = _window.sizes_of(m, density, block_size, shards)

  def solve(gram, row):
    return _inverse_root(gram, row, eps, jitter)

  return _window.preconditioner(sizes, window_dtype, solve)


def _inverse_root(gram: _gram.Gram, row: jax.Array, eps: Any, jitter: Any) -> _gram.Weights:
  norms = gram.norms
  longest = jnp.max(norms)
  share = _gram.relative(norms, longest)
  values, vectors = jnp.linalg.eigh(share[:, None] * gram.cosines * share[None])
  values = jnp.maximum(values, len(norms) * jnp.finfo(norms.dtype).eps * values[-1])
  shift = jnp.sqrt(jnp.asarray(jitter, norms.dtype))
  roots = jnp.hypot(longest * jnp.sqrt(values), shift)
  rest = reduce.ratio(shift, roots) ** 2
  weights = (1 - rest) / (roots + eps) + rest / eps
  rows = jnp.matmul(vectors, weights * vectors[row], precision="highest")
  return _gram.Weights(rows, jnp.ones_like(longest))
