"""Sparse M-FAC: an inverse of the empirical Fisher matrix from compressed gradients."""

from typing import SupportsFloat

import optax

from jaxrl import check

from . import _gram, _window


def sparse_mfac(
  m: int = 1024,
  density: SupportsFloat = 0.01,
  damp: float = 1e-6,
  *,
  block_size: int | None = 4096,
  window_dtype: str = "float32",
  shards: int = 8,
) -> optax.GradientTransformationExtraArgs:
  r"""The natural gradient of the last m sparse gradients, with error feedback.

  At step t = 1, 2, ..., over all leaves as one vector,

  .. math::
    a &= g + \xi, \qquad c = \mathrm{TopK}(a), \qquad \xi \leftarrow a - c, \qquad
    G_r \leftarrow c, \quad r = (t - 1) \bmod m \\
    u &= \Big(\lambda I + \frac1m \sum_j G_j^\top G_j\Big)^{-1} c
      = m \, G^\top \big(m \lambda I + G G^\top\big)^{-1} e_r

  TopK keeps the largest :math:`|a|` of each block. The window G holds its rows as indices and
  values; those not written yet are zero, and count in m. Of :math:`G G^\top` a step makes one
  row and column anew. What is preconditioned is c, which is zero in most places, and the step
  moves what some row of the window holds.

  Args:
    m: gradients in the window, at least 1.
    density: fraction of each block's entries to keep, in (0, 1], rounded up to whole entries.
      It fixes shapes: under `optax.inject_hyperparams` it is a static argument.
    damp: :math:`\lambda`, above 0. The paper takes 1e-7 for ResNet-18 on ImageNet (with a
      learning rate of 1e-3), 1e-5 on CIFAR-10 (0.03, and gradients clipped to a norm of 10),
      5e-5 for BERT (2e-5).
    block_size: entries of a block, at least 1, or `None` for one block a row of the leaf's
      view. Up to 32767 entries indices have 16 bits, else 32.
    window_dtype: of the window's values, "float32" or "bfloat16". What this rounds off stays in
      the error.
    shards: a leaf is viewed as `[leading, rest]`, `leading` the greatest common divisor of its
      first axis and `shards`, and cut into blocks along `rest`, so that a first axis sharded
      `shards` ways, or a divisor of it, stays where it is.

  Returns:
    A gradient transformation. Momentum, weight decay and the learning rate are optax's:
    `sparse_mfac() | trace(0.9) | add_decayed_weights(5e-4) | scale_by_learning_rate(0.03)`.

  Raises:
    ValueError: an argument is out of range.

  Cost: no gradient evaluation. 4 bytes a parameter for the error; m k (2 + 4) for a window of k
    entries a row, 2 + 2 in bfloat16 and two more with 32-bit indices; :math:`4 (m^2 + m + 1)` in
    all for the Gram matrix and the count. By default that is 65.5 bytes a parameter, 45 in
    bfloat16, where dense M-FAC takes 4096. A step reads the window twice and solves one system
    of m equations, in :math:`O(m^3)`. With sharded parameters m + 1 floats cross between devices
    for each kind of `leading`, and the system is solved on each device; a Gram matrix that the
    mesh splits as well, as `fsdp` does where it divides m, is gathered for that.

  Notes:
    The official code has the first form of u, as :math:`(c - G^\top y) / \lambda`, a small
    difference over a small number. In float32 and with :math:`\lambda = 10^{-6}` that is off by
    1e-5 to 10 times its length on networks for the digits, the more the larger the gradients.
    The second form has no such difference.

    In float32 the damping of a gradient is raised to 16 units of rounding,
    :math:`1.9 \cdot 10^{-6} |c|^2`, where it is less. Without that a window of nearly equal
    gradients has an indefinite matrix, or steps of arbitrary length; with it their length is
    right to some ten percent. In windows of 2 % of the same networks' gradients it changes u by
    less than 3e-3. Where jax has float64 enabled, the m x m part is in float64, whatever the
    parameters' dtype, and a unit of rounding is 2.2e-16.

    The paper's experiments take the largest entries of the whole vector, the authors' later
    library those of each block, as is done here; `optax.flatten(sparse_mfac(block_size=None,
    shards=1))` is the former. The first repository shrinks weights by 1 - wd, not by
    1 - lr wd, and can precondition g in place of c; neither is part of this function.

  References:
    [285] Modoranu, Kalinov, Kurtic, Frantar, Alistarh, "Error Feedback Can Accurately Compress
      Preconditioners", 2023, arXiv:2306.06098

  Example:
    >>> import jax.numpy as jnp
    >>> optimizer = sparse_mfac(m=2, density=0.5, damp=0.5)
    >>> gradient = jnp.array([[0.5, -2.0]])
    >>> updates, state = optimizer.update(gradient, optimizer.init(gradient))
    >>> print(f"{updates[0, 1]:.4f}", state.error)  # -2 / (damp + 2 * 2 / m)
    -0.8000 [[0.5 0. ]]
  """
  check.above("damp", damp, 0)
  check.one_of("window_dtype", window_dtype, _window.DTYPES)
  sizes = _window.sizes_of(m, density, block_size, shards)

  def solve(gram, row):
    return _gram.damped_inverse(gram, row, damp)

  return _window.preconditioner(sizes, window_dtype, solve)
