"""Directional sharpness: the curvature along a step, and what it costs the step."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrl import reduce

from . import _vectors


class DirectionalSharpness(NamedTuple):
  """Scalars of one direction.

  Attributes:
    sharpness: the second derivative along the unit direction.
    correlation: the cosine between gradient and direction; negative where it descends.
    decrease: the largest decrease along the direction of the loss's quadratic model, infinite
      where that has no minimum.
  """

  sharpness: jax.Array
  correlation: jax.Array
  decrease: jax.Array


def directional_sharpness(
  loss: Callable[[Any], jax.Array], params: Any, direction: Any
) -> DirectionalSharpness:
  r"""The curvature of the loss along a direction, such as an optimizer's update.

  With :math:`v = u / \|u\|_2` and the gradient :math:`g`,

  .. math::
    v^\top H v, \qquad \frac{g^\top v}{\|g\|}, \qquad \frac{(g^\top v)^2}{2 \, v^\top H v}.

  Args:
    loss: a twice differentiable function of the parameters.
    params: a tree of arrays; bf16 is widened to float32 first.
    direction: :math:`u`, a tree like `params`, of any length.

  Returns:
    A DirectionalSharpness; zeros for a direction of zeros.

  Raises:
    ValueError: `params` is empty, or `direction` has another structure or other shapes.

  Cost: one Hessian-vector product, about two gradient evaluations; 8 bytes a parameter.

  Notes:
    The paper averages over batches of the training data, the model in evaluation mode; hand a
    loss of all of them, or average the results.

  References:
    [389] Pan, Li, "Toward Understanding Why Adam Converges Faster Than SGD for Transformers",
      2023, arXiv:2306.00204

  Example:
    >>> import jax.numpy as jnp
    >>> loss = lambda w: 50.0 * w[0] ** 2 + 0.5 * w[1] ** 2
    >>> found = directional_sharpness(loss, jnp.array([0.1, 1.0]), jnp.array([10.0, 1.0]))
    >>> print(f"{found.sharpness:.4f}")  # (100 * 10**2 + 1) / (10**2 + 1)
    99.0198
  """
  params = _vectors.wide(params)
  return _measured(loss)(params, _vectors.like("direction", direction, params))


def _measured(loss: Callable[[Any], jax.Array]) -> Callable[..., DirectionalSharpness]:
  @jax.jit
  def measured(params, direction):
    direction = _vectors.unit(direction)
    gradient, product = _vectors.hessian_product(loss, params, direction)
    slope, sharpness = _vectors.dot(gradient, direction), _vectors.dot(direction, product)
    correlation = reduce.ratio(slope, _vectors.norm(gradient))
    return DirectionalSharpness(sharpness, correlation, _decrease(slope, sharpness))

  return measured


def _decrease(slope: jax.Array, sharpness: jax.Array) -> jax.Array:
  convex = sharpness > 0
  endless = (sharpness < 0) | ((sharpness == 0) & (slope != 0))
  decrease = slope**2 / (2 * jnp.where(convex, sharpness, 1))
  return jnp.where(endless, jnp.inf, jnp.where(convex, decrease, 0))
