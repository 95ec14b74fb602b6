"""perpGrad: leave out the part of the gradient that only scales the weights."""

import jax
import jax.numpy as jnp
import optax

from jaxrl import check, reduce


def perp_grad(
  *, eps: float = 1e-30, rescale: bool = True, tolerance: float = 1e-6
) -> optax.GradientTransformationExtraArgs:
  r"""Projects the gradient of each parameter tensor onto what is perpendicular to the tensor.

  For a tensor :math:`w` of the parameters and its gradient :math:`g`,

  .. math::
    g_\perp = g - \frac{\langle w, g \rangle}{\langle w, w \rangle + \epsilon} w, \qquad
    u = \frac{\|g\|_2}{\|g_\perp\|_2} g_\perp,

  in float32. Where a model fits its data, the gradient of the cross-entropy ever more scales the
  logits up, until rounding takes what is left of it ("naive loss minimization"). Without
  that part the model has to change its function, and generalises without weight decay. It
  stands before what takes the step: `optax.chain(perp_grad(), optax.adamw(1e-2, b2=0.99))`.

  Args:
    eps: :math:`\epsilon`, at least 0; a tensor of zeros keeps its gradient.
    rescale: give :math:`g_\perp` the length of :math:`g`.
    tolerance: a tensor whose :math:`\|g_\perp\|` is at most this times :math:`\|g\|` gets a
      zero update; at least 0.

  Returns:
    A gradient transformation whose `update` needs `params`.

  Raises:
    ValueError: `eps` or `tolerance` is negative, or `update` was called without `params`.

  Cost: no gradient evaluation and no state; two passes over the parameters.

  Notes:
    The official code has no `tolerance`: where gradient and weights are parallel, as they
    always are in a tensor of one entry, it blows rounding errors up to the length of the
    gradient. Here such a tensor stands still; `optax.masked` lets it have its own gradient.
    The projection is of each tensor as it is stored, biases and scales of norms included.

  References:
    [45] Prieto, Barsbey, Mediano, Birdal, "Grokking at the Edge of Numerical Stability", 2025,
      arXiv:2501.04697

  Example:
    >>> import jax.numpy as jnp
    >>> optimizer = perp_grad()
    >>> w, gradient = jnp.array([2.0, 0.0]), jnp.array([3.0, -4.0])
    >>> updates, _ = optimizer.update(gradient, optimizer.init(w), w)
    >>> print(updates)  # the second entry is perpendicular to w
    [ 0. -5.]
  """
  check.at_least("eps", eps, 0)
  check.at_least("tolerance", tolerance, 0)

  def perpendicular(gradient, param):
    # Both in units of their largest entry: squares of neither overflow nor vanish.
    g, g_unit = _in_units(gradient)
    w, w_unit = _in_units(param)
    share = reduce.ratio(jnp.sum(w * g), jnp.sum(w * w) + eps / w_unit / w_unit)
    rest = g - share * w
    before, after = jnp.linalg.norm(g.reshape(-1)), jnp.linalg.norm(rest.reshape(-1))
    length = before if rescale else after
    scale = jnp.where(after > tolerance * before, reduce.ratio(length, after), 0)
    return (g_unit * (scale * rest)).astype(gradient.dtype)

  def update_fn(updates, state, params=None, **extra_args):
    del extra_args
    check.params("perp_grad", params)
    return jax.tree.map(perpendicular, updates, params), state

  return optax.GradientTransformationExtraArgs(optax.init_empty_state, update_fn)


def _in_units(x: jax.Array) -> tuple[jax.Array, jax.Array]:
  """`x` in float32 over its largest magnitude, and that magnitude (1 where all are 0)."""
  x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
  largest = jnp.max(jnp.abs(x), initial=0)
  unit = jnp.where(largest > 0, largest, 1)
  return x / unit, unit
