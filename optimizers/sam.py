"""Sharpness-aware minimization: descend by the gradient at the worst point nearby."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxrl import check, reduce

replaces_gradient = True


class SamState(NamedTuple):
  """State of `sam`."""

  count: jax.typing.ArrayLike


def sam(
  rho: float | optax.Schedule = 0.05, *, eps: float = 1e-12
) -> optax.GradientTransformationExtraArgs:
  r"""Replaces the gradient at the parameters by the one at a point uphill from them.

  With the loss :math:`L` of this step's batch and its incoming gradient :math:`g`,

  .. math::
    e = \rho \, g / (\|g\|_2 + \epsilon), \qquad u = \nabla L(w + e),

  the norm taken over the whole tree, in float32. It comes first in a chain; what follows
  (clipping, decay, momentum) sees the parameters `w`, never `w + e`:
  `optax.chain(sam(rho=0.05), optax.adamw(1e-3))`. Under `optax.masked` only the masked-in
  part of the tree is perturbed.

  Args:
    rho: radius of the perturbation, at least 0, or a schedule of the step count.
    eps: added to the norm, at least 0.

  Returns:
    A gradient transformation whose `update` needs `params` and `value_fn`, the loss of
    this step's batch as a function of the parameters.

  Raises:
    ValueError: `rho` or `eps` is negative, or `update` was called without `params`.
    TypeError: `update` was called without `value_fn`.

  Cost: one gradient evaluation beyond the incoming one; 4 bytes of state in all; a
  temporary copy of the parameters.

  Notes:
    A zero gradient gives a zero perturbation; `optax.contrib.sam` divides by zero there.
    The official run also clips the final gradient at norm 5, which here is
    `optax.clip_by_global_norm(5.0)` behind this element.

  References:
    [183] Foret, Kleiner, Mobahi, Neyshabur, "Sharpness-Aware Minimization for Efficiently
      Improving Generalization", 2020, arXiv:2010.01412

  Example:
    >>> import jax, optax
    >>> from optimizers.sam import sam
    >>> loss = lambda w: w**4
    >>> optimizer = optax.chain(sam(rho=0.5), optax.sgd(0.125))
    >>> w = jax.numpy.array(1.0)
    >>> updates, state = optimizer.update(
    ...   jax.grad(loss)(w), optimizer.init(w), w, value_fn=loss)
    >>> float(updates)  # -0.125 * 4 * 1.5**3
    -1.6875
  """
  check.at_least("rho", rho, 0)
  check.at_least("eps", eps, 0)

  def init_fn(params):
    del params
    return SamState(count=jnp.zeros([], jnp.int32))

  def update_fn(updates, state, params=None, *, value_fn=None, **extra_args):
    del extra_args
    check.params("sam", params)
    value_fn = check.value_fn("sam", value_fn)
    radius = rho(state.count) if callable(rho) else rho
    perturbation = _scaled_to(updates, radius, eps)
    perturbed = jax.tree.map(lambda w, e: (w + e).astype(w.dtype), params, perturbation)
    return jax.grad(value_fn)(perturbed), SamState(optax.safe_increment(state.count))

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _scaled_to(gradient: Any, radius: jax.typing.ArrayLike, eps: float) -> Any:
  """radius * gradient / (norm + eps) in float32, with squares that cannot overflow."""
  wide = jax.tree.map(lambda g: g.astype(jnp.promote_types(g.dtype, jnp.float32)), gradient)
  largest = optax.tree.norm(wide, ord=jnp.inf)
  unit = jnp.where(largest > 0, largest, 1)
  direction = jax.tree.map(lambda g: g / unit, wide)
  scale = reduce.ratio(radius, optax.tree.norm(direction) + eps / unit)
  return jax.tree.map(lambda d: scale * d, direction)
