"""The loss along lines and over planes through the parameters."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from . import _loops, _vectors

_TINY = 1e-10


def linear_path(
  loss: Callable[[Any], jax.Array], start: Any, end: Any, fractions: jax.typing.ArrayLike
) -> jax.Array:
  r"""The loss at points of the straight line through two sets of parameters.

  .. math::
    L((1 - t) \, w_0 + t \, w_1)

  From initial to trained parameters it mostly falls without a bump. Along a direction `d` it
  is the path from `w` to `w + d`.

  Args:
    loss: a function of the parameters.
    start: :math:`w_0`, a tree of arrays; bf16 is widened to float32 first.
    end: :math:`w_1`, a tree like it.
    fractions: :math:`t`, `[N]`; values outside [0, 1] go on beyond the ends.

  Returns:
    The losses `[N]`, each in turn.

  Raises:
    ValueError: `start` is empty, `end` has another structure or other shapes, or `fractions`
      is not of rank 1.

  Cost: `N` evaluations of the loss; 4 bytes a parameter.

  References:
    [182] Goodfellow, Vinyals, Saxe, "Qualitatively Characterizing Neural Network Optimization
      Problems", 2014, arXiv:1412.6544

  Example:
    >>> import jax.numpy as jnp
    >>> losses = linear_path(lambda w: w**2, jnp.array(2.0), jnp.array(0.0), [0.0, 0.5, 1.5])
    >>> losses.tolist()
    [4.0, 1.0, 1.0]
  """
  start = _vectors.wide(start)
  end = _vectors.like("end", end, start)
  fractions = _positions("fractions", fractions)

  @jax.jit
  def loss_at(t, start, end):
    return loss(jax.tree.map(lambda a, b: ((1 - t) * a + t * b).astype(a.dtype), start, end))

  return _loops.each(loss_at, fractions, start, end)


def loss_plane(
  loss: Callable[[Any], jax.Array],
  params: Any,
  first: Any,
  second: Any,
  x: jax.typing.ArrayLike,
  y: jax.typing.ArrayLike,
) -> jax.Array:
  r"""The loss over the plane that two directions span at the parameters.

  .. math::
    L(w + x_i \, d_1 + y_j \, d_2)

  Args:
    loss: a function of the parameters.
    params: :math:`w`, a tree of arrays; bf16 is widened to float32 first.
    first: :math:`d_1`, a tree like `params`, such as `filter_normalized` makes.
    second: :math:`d_2`, likewise.
    x: steps along the first direction, `[N]`.
    y: steps along the second, `[M]`.

  Returns:
    The losses `[N, M]`.

  Raises:
    ValueError: `params` is empty, a direction has another structure or other shapes, or `x`
      or `y` is not of rank 1.

  Cost: `N * M` evaluations of the loss; 8 bytes a parameter beyond the directions.

  References:
    Baseline: Li, Xu, Taylor, Studer, Goldstein, "Visualizing the Loss Landscape of Neural
      Nets", 2018, arXiv:1712.09913

  Example:
    >>> import jax.numpy as jnp
    >>> first, second = jnp.array([1.0, 0.0]), jnp.array([0.0, 1.0])
    >>> plane = loss_plane(lambda w: w[0] + 10 * w[1], jnp.zeros(2), first, second, [0, 1], [0, 2])
    >>> plane.tolist()
    [[0.0, 20.0], [1.0, 21.0]]
  """
  params = _vectors.wide(params)
  first = _vectors.like("first", first, params)
  second = _vectors.like("second", second, params)
  x, y = _positions("x", x), _positions("y", y)

  @jax.jit
  def loss_at(position, params, first, second):
    point = _vectors.moved(params, position[0], first)
    return loss(_vectors.moved(point, position[1], second))

  grid = jnp.repeat(x, y.size), jnp.tile(y, x.size)
  losses = _loops.each(loss_at, grid, params, first, second)
  return losses.reshape(x.size, y.size, *losses.shape[1:])


def filter_normalized(direction: Any, params: Any, *, axis: int = -1) -> Any:
  r"""The direction with each filter scaled to the norm of the parameters' filter.

  .. math::
    d_f \leftarrow \frac{d_f}{\|d_f\| + 10^{-10}} \|w_f\|

  Arrays of rank 0 and 1 (biases, normalisation) get zeros. Planes of networks that differ by
  a rescaling of their filters then look alike.

  Args:
    direction: a tree like `params`, such as Gaussian noise.
    params: a tree of arrays.
    axis: which counts the filters; the last one of a Flax kernel.

  Returns:
    The direction, in float32 or wider.

  Raises:
    ValueError: `params` is empty, or `direction` has another structure or other shapes.

  Cost: two passes over the parameters.

  References:
    Baseline: Li, Xu, Taylor, Studer, Goldstein, "Visualizing the Loss Landscape of Neural
      Nets", 2018, arXiv:1712.09913

  Example:
    >>> import jax.numpy as jnp
    >>> found = filter_normalized(jnp.array([[1.0, 2.0]]), jnp.array([[3.0, -5.0]]))
    >>> print(jnp.round(found, 4).tolist())
    [[3.0, 5.0]]
  """
  params = _vectors.wide(params)

  def norms(x):
    others = [i for i in range(x.ndim) if i != axis % x.ndim]
    return jnp.sqrt(jnp.sum(x**2, axis=others, keepdims=True))

  def of_leaf(d, w):
    if w.ndim < 2:
      return jnp.zeros_like(d)
    return d * (norms(w) / (norms(d) + _TINY))

  return jax.tree.map(of_leaf, _vectors.like("direction", direction, params), params)


def _positions(name: str, values: jax.typing.ArrayLike) -> jax.Array:
  values = jnp.asarray(values)
  if values.ndim != 1 or not values.size:
    raise ValueError(f"{name} must be numbers [N], got the shape {values.shape}")
  return values
