"""CGA: at the end of quantised training, move only the weights near a rounding boundary."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxrl import check

from .weights._quantization import all_but, check_axis, mean_of, statistics_of


class CgaState(NamedTuple):
  """State of `cga`: that of the optimizer inside, and the share of frozen weights."""

  inner: Any
  metrics: dict[str, jax.Array]


def cga(
  inner: optax.GradientTransformation, bits: int = 2, boundary: float = 0.005, axis: int = -1
) -> optax.GradientTransformationExtraArgs:
  r"""Freezes the latent weights whose rounding is certain: confidence-guided annealing.

  Of the kernels' latent weights v on the levels of `statsq`, with the scale s of each unit,
  :math:`n = 2^{b-1}` and the boundaries :math:`i \in \{1 - n, \dots, n - 1\}` between levels,

  .. math::
    m = \big[\min_i |n v / s - i| \le \beta\big], \qquad
    u = m \odot \mathrm{inner}(m \odot g),

  so that the weights with :math:`m = 0` stay where they are, whatever momentum and decay would
  do. The mask is that of the weights before each step. It ends a training that
  `reparameterized(adamw(1e-3), statsq(bits=2))` began, as
  `reparameterized(cga(adamw(1e-5), bits=2), statsq(bits=2))`.

  Args:
    inner: with a learning rate, since it moves the weights.
    bits: b of `statsq`.
    boundary: :math:`\beta`, at least 0, as a fraction of the distance between levels.
    axis: of the units, as in `statsq`.

  Returns:
    A gradient transformation whose `update` needs `params`, the latent weights. Kernels are the
    arrays of two or more axes; all else trains on.

  Raises:
    ValueError: an argument is out of range, or a kernel has no such axis, or `update` was called
      without `params`.

  Cost: no gradient evaluation; the state of `inner`, and 4 bytes.
    `metrics["frozen"]` is the share of the kernels' entries that the last step left alone.

  Notes:
    The defaults are those of the official code, which fine-tunes for 15 epochs by it, with 0.005
    or 0.007. That code starts at the lowest boundary that has weights of the layer on both
    sides, and ends at the highest; here all boundaries count.

  References:
    [106] Liu, Liu, Cheng, "Oscillation-free Quantization for Low-bit Vision Transformers", 2023,
      arXiv:2302.02210

  Example:
    >>> import jax.numpy as jnp, optax
    >>> optimizer = cga(optax.sgd(0.1), bits=2, boundary=0.1)
    >>> v = jnp.array([[0.02], [-0.6], [1.0], [2.38]])  # s = 2: boundaries at -1, 0 and 1
    >>> updates, _ = optimizer.update(jnp.ones((4, 1)), optimizer.init(v), v)
    >>> print(updates.ravel())
    [-0.1  0.  -0.1  0. ]
  """
  check.whole("bits", bits, 1)
  check.at_least("boundary", boundary, 0)
  check_axis(axis)
  inner = optax.with_extra_args_support(inner)
  outermost = 2 ** (bits - 1) - 1

  def init_fn(params):
    return CgaState(inner.init(params), {"frozen": jnp.zeros([], jnp.float32)})

  def is_moving(kernel):
    if jnp.ndim(kernel) < 2:
      return jnp.ones(jnp.shape(kernel), bool)
    _, place = statistics_of(kernel, bits, all_but(axis, kernel))
    nearest = jnp.clip(jnp.round(place), -outermost, outermost)
    return jnp.abs(place - nearest) <= boundary

  def update_fn(updates, state, params=None, **extra_args):
    check.params("cga", params)
    moving = jax.tree.map(is_moving, params)
    updates, inner_state = inner.update(_kept(moving, updates), state.inner, params, **extra_args)
    frozen = mean_of(~kernel for kernel in jax.tree.leaves(moving) if kernel.ndim > 1)
    return _kept(moving, updates), CgaState(inner_state, {"frozen": frozen})

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _kept(moving: Any, tree: Any) -> Any:
  return jax.tree.map(lambda m, x: jnp.where(m, x, jnp.zeros_like(x)), moving, tree)
