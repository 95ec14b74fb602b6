"""StatsQ: weights of a few bits, on levels that the mean weight of each unit fixes."""

import jax
import jax.numpy as jnp

from jaxrl import check

from ._quantization import all_but, by_statistics, check_axis, codes_at, statistics_of
from ._reparameterization import Reparameterization


def statsq(bits: int = 2, axis: int = -1) -> Reparameterization:
  r"""Weights rounded to :math:`2^b` levels, whose scale is a statistic and not learned.

  For each unit, with :math:`n = 2^{b-1}`,

  .. math::
    s = 2 \, \mathrm{mean} |v|, \qquad
    k = \mathrm{clip}(\mathrm{round}(n v / s - \tfrac12), -n, n - 1), \qquad
    w = s \, (k + \tfrac12) / n, \qquad \frac{\partial w}{\partial v} := 1

  The derivative is that of the identity also where weights are clipped, and s counts as a
  constant. Two bits give the levels :math:`\pm s/4, \pm 3s/4`. A scale that follows the weights
  lets fewer of them oscillate between two levels than one that is learned (`lsq`).

  Train with `optimizers.reparameterized.reparameterized`, whose state holds the latent weights
  `v`, or wrap a Flax layer in `jaxrl.models.Reparameterized`. Train the oscillating ones alone
  at the end, with `optimizers.cga.cga`.

  Args:
    bits: b, at least 1.
    axis: of the units in each kernel; means are taken over all others. The last one in Flax.

  Returns:
    A Reparameterization, which starts at :math:`v = w`: weights move to their levels in the
    first step. Kernels are the arrays of two or more axes.

  Raises:
    ValueError: `bits` is no whole number of at least 1, or `axis` none; or a kernel has no such
      axis.

  Cost: elementwise work and a reduction over each kernel.

  Notes:
    As in the official code. The paper quantises activations as well, by `lsq`'s rule, which is
    for the model to do, and leaves the first and the last layer as they are: `where=` on
    `reparameterized` does that. A unit of zeros stays zero. In `reparameterized` the first
    gradient is that of the weights before rounding, and parameters are on their levels to the
    rounding of one addition.

  References:
    [106] Liu, Liu, Cheng, "Oscillation-free Quantization for Low-bit Vision Transformers", 2023,
      arXiv:2302.02210

  Example:
    >>> import jax.numpy as jnp
    >>> by = statsq(bits=2)
    >>> print(by.weights(jnp.array([[0.1], [-0.5], [2.0], [1.4]])).ravel())  # s = 2
    [ 0.5 -0.5  1.5  1.5]
  """
  check.whole("bits", bits, 1)
  check_axis(axis)

  def weights(kernel):
    if jnp.ndim(kernel) < 2:
      return kernel
    return by_statistics(kernel, bits, all_but(axis, kernel))

  def codes(raw):
    kernels = [leaf for leaf in jax.tree.leaves(raw) if jnp.ndim(leaf) > 1]
    places = (statistics_of(kernel, bits, all_but(axis, kernel))[1] for kernel in kernels)
    return tuple(codes_at(place, bits) for place in places)

  return Reparameterization(
    init=lambda params: params, weights=lambda raw: jax.tree.map(weights, raw), codes=codes
  )
