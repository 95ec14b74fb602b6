"""Projections: convex domains, by the nearest point and by the lowest one along a direction."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.flatten_util
import jax.numpy as jnp
import optax

from jaxrl import check, reduce

from ._mirror import norm

_MOST = 2000  # Iterations of a projection in a norm of its own.
_ROUNDING = 4  # Multiples of the machine epsilon at which such an iteration stands still.


class Projection(NamedTuple):
  r"""A closed convex domain :math:`X`.

  Attributes:
    nearest: `nearest(tree) -> tree`, the point of the domain with the least Euclidean distance.
    lowest: `lowest(direction) -> tree`, a point of the domain that minimises
      :math:`\langle d, x \rangle`, an extreme one; None where there is no lowest point.
  """

  nearest: Callable[[Any], Any]
  lowest: Callable[[Any], Any] | None = None


def l2_ball(radius: float = 1.0) -> Projection:
  r"""All parameters together in a Euclidean ball, :math:`\|x\|_2 \le r`.

  Args:
    radius: :math:`r`, above 0.

  Raises:
    ValueError: the radius is not above 0.

  References:
    Baseline: Jaggi, "Revisiting Frank-Wolfe: Projection-Free Sparse Convex Optimization", 2013
      (lowest points)

  Example:
    >>> import jax.numpy as jnp
    >>> print(l2_ball(1.0).nearest(jnp.array([3.0, 4.0])))
    [0.6 0.8]
  """
  check.above("radius", radius, 0)

  def lowest(direction):
    size = norm(direction)
    return jax.tree.map(lambda d: (-radius * reduce.ratio(d, size)).astype(d.dtype), direction)

  return Projection(lambda tree: optax.projections.projection_l2_ball(tree, radius), lowest)


def l1_ball(radius: float = 1.0) -> Projection:
  r"""All parameters together in a cross-polytope, :math:`\|x\|_1 \le r`: sparse vertices.

  Args:
    radius: :math:`r`, above 0.

  Raises:
    ValueError: the radius is not above 0.

  References:
    Baseline: Duchi, Shalev-Shwartz, Singer, Chandra, "Efficient Projections onto the l1-Ball for
      Learning in High Dimensions", 2008

  Example:
    >>> import jax.numpy as jnp
    >>> domain = l1_ball(1.0)
    >>> print(domain.nearest(jnp.array([2.0, 1.5])), domain.lowest(jnp.array([-1.0, 2.0])))
    [0.75 0.25] [ 0. -1.]
  """
  check.above("radius", radius, 0)

  def nearest(tree):
    if not optax.tree.size(tree):
      return tree
    return optax.projections.projection_l1_ball(tree, radius)

  def lowest(direction):
    vector, unravel = jax.flatten_util.ravel_pytree(direction)
    if not vector.size:
      return direction
    steepest = jnp.argmax(jnp.abs(vector))
    vertex = jnp.where(jnp.arange(vector.size) == steepest, -radius * jnp.sign(vector), 0)
    return unravel(vertex.astype(vector.dtype))

  return Projection(nearest, lowest)


def box(lower: Any = -1.0, upper: Any = 1.0) -> Projection:
  r"""Each parameter in an interval, :math:`a \le x \le b`.

  Args:
    lower: :math:`a`, a number or a tree like the parameters.
    upper: :math:`b`, likewise, nowhere below `lower`.

  Raises:
    ValueError: the number `upper` is below the number `lower` or, from the functions, a tree
      of bounds does not fit the parameters.

  References:
    Baseline: Jaggi, "Revisiting Frank-Wolfe: Projection-Free Sparse Convex Optimization", 2013
      (lowest points)

  Example:
    >>> import jax.numpy as jnp
    >>> print(box(0.0, 1.0).nearest(jnp.array([-2.0, 0.5, 3.0])))
    [0.  0.5 1. ]
  """
  if isinstance(lower, int | float):
    check.at_least("upper", upper, lower)

  def spread(name, bound, tree):
    if jax.tree.structure(bound) == jax.tree.structure(0):
      return jax.tree.map(lambda _: bound, tree)
    _check_fits(name, bound, tree)
    return bound

  def bounds(tree):
    return spread("lower", lower, tree), spread("upper", upper, tree)

  def nearest(tree):
    return jax.tree.map(lambda x, a, b: jnp.clip(x, a, b).astype(x.dtype), tree, *bounds(tree))

  def lowest(direction):
    return jax.tree.map(
      lambda d, a, b: jnp.where(d < 0, b, a).astype(d.dtype), direction, *bounds(direction)
    )

  return Projection(nearest, lowest)


def non_negative() -> Projection:
  r"""No parameter below zero, :math:`x \ge 0`.

  It has no lowest point along most directions.

  References:
    Baseline: Jaggi, "Revisiting Frank-Wolfe: Projection-Free Sparse Convex Optimization", 2013
      (lowest points)

  Example:
    >>> import jax.numpy as jnp
    >>> print(non_negative().nearest(jnp.array([-2.0, 3.0])))
    [0. 3.]
  """
  return Projection(optax.projections.projection_non_negative)


def simplex() -> Projection:
  r"""The last axis of every leaf a distribution, :math:`x \ge 0`, :math:`\sum_i x_i = 1`.

  A scalar is the distribution on a single outcome.

  References:
    Baseline: Duchi, Shalev-Shwartz, Singer, Chandra, "Efficient Projections onto the l1-Ball for
      Learning in High Dimensions", 2008

  Example:
    >>> import jax.numpy as jnp
    >>> domain = simplex()
    >>> print(domain.nearest(jnp.array([2.0, 1.5])), domain.lowest(jnp.array([3.0, 1.0])))
    [0.75 0.25] [0. 1.]
  """
  of_rows = jnp.vectorize(optax.projections.projection_simplex, signature="(n)->(n)")

  def nearest(x):
    return of_rows(x) if x.ndim and x.size else jnp.ones_like(x)

  def lowest(d):
    if not d.ndim or not d.size:
      return jnp.ones_like(d)
    return jax.nn.one_hot(jnp.argmin(d, axis=-1), d.shape[-1], dtype=d.dtype)

  return Projection(
    lambda tree: jax.tree.map(nearest, tree), lambda direction: jax.tree.map(lowest, direction)
  )


def nearest_in_norm(
  projection: Projection,
  point: Any,
  product: Callable[[jax.Array], jax.Array],
  low: jax.typing.ArrayLike,
  high: jax.typing.ArrayLike,
) -> Any:
  r"""The point of a domain that is nearest in the norm of a matrix, :math:`\|x\|_H^2 = x^\top H x`.

  It is found by accelerated projected gradients, from the Euclidean projection on, until they
  move by no more than rounding. A point in the domain is itself the answer.

  Args:
    projection: the domain.
    point: a tree.
    product: :math:`v \mapsto H v`, of a vector with all the tree's numbers in one row.
    low: a number above 0 that no eigenvalue of :math:`H` lies below.
    high: one that none lies above.

  Returns:
    A tree like `point`.

  Cost: a product and a projection an iteration, of which there are about
    :math:`16 \sqrt{\mathrm{high} / \mathrm{low}}` in float32, and at most 2000.

  References:
    Baseline: Hazan, Agarwal, Kale, "Logarithmic Regret Algorithms for Online Convex
      Optimization", 2007 (projections in the norm of an online Newton step)

  Example:
    >>> import jax.numpy as jnp
    >>> scales = jnp.array([1.0, 4.0])
    >>> found = nearest_in_norm(simplex(), jnp.array([1.0, 1.0]), lambda v: scales * v, 1.0, 4.0)
    >>> print([f"{x:.4f}" for x in found])
    ['0.2000', '0.8000']
  """
  target, unravel = jax.flatten_util.ravel_pytree(point)
  if not target.size:
    return point
  ratio = jnp.sqrt(jnp.asarray(low / high, target.dtype))
  momentum = (1 - ratio) / (1 + ratio)

  def nearest(vector):
    return jax.flatten_util.ravel_pytree(projection.nearest(unravel(vector)))[0]

  def moving(carry):
    iteration, _, _, change = carry
    return (iteration < _MOST) & (change > _ROUNDING * jnp.finfo(target.dtype).eps)

  def iterate(carry):
    iteration, x, ahead, _ = carry
    new = nearest(ahead - product(ahead - target) / high)
    size = jnp.maximum(jnp.max(jnp.abs(new)), jnp.finfo(target.dtype).tiny)
    change = jnp.maximum(jnp.max(jnp.abs(new - ahead)), jnp.max(jnp.abs(new - x))) / size
    return iteration + 1, new, (new + momentum * (new - x)).astype(x.dtype), change

  start = nearest(target)
  inside = jnp.all(start == target)
  change = jnp.where(inside, 0, jnp.inf).astype(target.dtype)
  _, found, _, _ = jax.lax.while_loop(moving, iterate, (0, start, start, change))
  return unravel(found)


def _check_fits(name: str, given: Any, tree: Any) -> None:
  shapes = [
    (jax.tree.structure(t), [jnp.shape(x) for x in jax.tree.leaves(t)]) for t in (given, tree)
  ]
  if shapes[0] != shapes[1]:
    raise ValueError(
      f"{name} must be a number or fit the parameters, {shapes[1][0]} of shapes {shapes[1][1]}, "
      f"got {shapes[0][0]} of shapes {shapes[0][1]}"
    )
