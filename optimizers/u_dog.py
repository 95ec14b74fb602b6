"""U-DoG and UniXGrad: accelerated descent by pairs of gradients, and without a step size."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxrl import check

from ._online import clipped, mixed, norm, rate_at, root_of_squares, stepped
from ._sharpness import wide


class UDogState(NamedTuple):
  """State of `u_dog`; points are kept as their displacements from the start.

  Attributes:
    count: updates so far, two a pair.
    start: the parameters at the start.
    y: the leading point.
    average: the answer, u.
    m: the first gradient of this pair.
    distance: the largest so far from the start, of x and y.
    reached: the same with the x of this pair.
    weight: of the coming step, the sum of all distances.
    total: the sum of all weights, the coming one included.
    first: norm of the first gradient.
    variation: root of the weighted squared differences within pairs.
  """

  count: jax.typing.ArrayLike
  start: Any
  y: Any
  average: Any
  m: Any
  distance: jax.Array
  reached: jax.Array
  weight: jax.Array
  total: jax.Array
  first: jax.Array
  variation: jax.Array


class UnixgradState(NamedTuple):
  """State of `unixgrad`; points are kept as their displacements from the start."""

  count: jax.typing.ArrayLike
  start: Any
  y: Any
  average: Any
  m: Any
  variation: jax.Array


def u_dog(
  learning_rate: float | optax.Schedule = 1.0,
  *,
  reps_rel: float = 1e-6,
  eps: float = 1e-8,
  radius: float | None = None,
) -> optax.GradientTransformationExtraArgs:
  r"""UniXGrad whose step sizes are the distance covered so far over the gradients' variation.

  The parameters are :math:`z_t`, at which :math:`m_t` is taken, and :math:`u_t`, at which
  :math:`g_t` is, in turn: two updates, each with a batch of its own, are one iteration. The
  answer, `eval_params`, is the average u. From :math:`x_0 = y_0 = z_0` and
  :math:`\bar r_0 = \mathrm{reps\_rel} (1 + \|x_0\|)`, for t = 0, 1, ...,

  .. math::
    \omega_t &= \textstyle\sum_{k \le t} \bar r_k, \qquad \alpha_t = \omega_t / \bar r_t, \qquad
    z_t = \frac{\omega_t y_t + \sum_{k < t} \omega_k x_{k+1}}{\sum_{k \le t} \omega_k} \\
    x_{t+1} &= \Pi\Big( y_t - c \frac{\omega_t}{\sqrt{G_t}} m_t \Big), \qquad
    u_t = \frac{\sum_{k \le t} \omega_k x_{k+1}}{\sum_{k \le t} \omega_k} \\
    y_{t+1} &= \Pi\Big( y_t - c \frac{\omega_t}{\sqrt{G_{t+1}}} g_t \Big), \qquad
    \bar r_{t+1} = \max(\bar r_t, \|x_{t+1} - x_0\|, \|y_{t+1} - x_0\|) \\
    G_t &= \epsilon + \|m_0\|^2 + \textstyle\sum_{k < t} \alpha_k^2 \|g_k - m_k\|^2

  It is a whole recipe: no learning rate has to be tuned, no averaging added, and what stands
  around it in a chain would disturb the distances, as weight decay does.

  Args:
    learning_rate: the factor :math:`c`, at least 0, or a schedule of the count of updates. The
      method is made for 1.
    reps_rel: the first distance, relative to the parameters', above 0. Too small a one costs
      steps until the distance has grown; 1e-4 is advised for networks with batch normalisation.
    eps: :math:`\epsilon`, at least 0.
    radius: of the ball around the start onto which :math:`\Pi` projects, above 0; by default
      there is none.

  Returns:
    A recipe whose `update` needs `params`.

  Raises:
    ValueError: an argument is out of range, or `update` was called without `params`.

  Cost: no gradient evaluation; 16 bytes a parameter.

  Notes:
    A variant. Points, weights and the order of the steps are the paper's. Its sums :math:`G`
    are known to us by their order alone (each at least the one before, that of x before that
    of y); those above are a reconstruction, and others that keep the order ended within a few
    per cent of them. Both gradients of one batch would not do: their noise is the same, cancels
    in the difference, and the steps would not shrink by it. Multiplying the loss by a constant
    changes nothing but what :math:`\epsilon` does.

  References:
    [196] Kreisler, Ivgi, Hinder, Carmon, "Accelerated Parameter-Free Stochastic Optimization",
      2024, arXiv:2404.00666
    Ivgi, Hinder, Carmon, "DoG is SGD's Best Friend: A Parameter-Free Dynamic Step Size
      Schedule", 2023, arXiv:2302.12022

  Example:
    >>> import jax, jax.numpy as jnp
    >>> loss = lambda w: 50 * jnp.sum((w - 3) ** 2)
    >>> optimizer, w = u_dog(), jnp.zeros(2)
    >>> state = optimizer.init(w)
    >>> update = jax.jit(optimizer.update)
    >>> for _ in range(100):
    ...   updates, state = update(jax.grad(loss)(w), state, w)
    ...   w = w + updates
    >>> print(jnp.round(eval_params(state, w), 2))
    [3. 3.]
  """
  check.at_least("learning_rate", learning_rate, 0)
  check.above("reps_rel", reps_rel, 0)
  check.at_least("eps", eps, 0)
  check.above("radius", radius, 0)

  def init_fn(params):
    start = wide(params)
    zeros = jax.tree.map(jnp.zeros_like, start)
    nothing = jnp.zeros([], norm(start).dtype)
    distance = reps_rel * (1 + norm(start)) + nothing
    return UDogState(
      *(jnp.zeros([], jnp.int32), start, zeros, zeros, zeros),
      *(distance, distance, distance, distance, nothing, nothing),
    )

  def step(state, gradient, c):
    root = root_of_squares(jnp.sqrt(eps), state.first, state.variation)
    return clipped(stepped(state.y, _over(c * state.weight, root), gradient), radius)

  def first_of_pair(state, m, c):
    state = state._replace(m=m, first=jnp.where(state.count == 0, norm(m), state.first))
    x = step(state, m, c)
    average = mixed(state.average, x, state.weight / state.total)
    reached = jnp.maximum(state.reached, norm(x))
    return average, state._replace(average=average, reached=reached)

  def second_of_pair(state, g, c):
    gap = norm(jax.tree.map(jnp.subtract, g, state.m)) * state.weight / state.distance
    state = state._replace(variation=root_of_squares(state.variation, gap))
    y = step(state, g, c)
    distance = jnp.maximum(state.reached, norm(y))
    weight = state.weight + distance
    total = state.total + weight
    state = state._replace(y=y, distance=distance, reached=distance, weight=weight, total=total)
    return mixed(state.average, y, weight / total), state

  def update_fn(updates, state, params=None, **extra_args):
    del extra_args
    check.params("u_dog", params)
    c = rate_at(learning_rate, state.count)
    is_second = jnp.asarray(state.count) % 2 == 1
    point, state = jax.lax.cond(is_second, second_of_pair, first_of_pair, state, wide(updates), c)
    updates = _towards(state.start, point, params)
    return updates, state._replace(count=optax.safe_increment(state.count))

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def unixgrad(
  learning_rate: float | optax.Schedule = 1.0,
  *,
  diameter: float,
) -> optax.GradientTransformationExtraArgs:
  r"""An extragradient method that adapts to smoothness and noise, given the domain's size.

  The parameters are :math:`z_t`, at which :math:`m_t` is taken, and :math:`u_t`, at which
  :math:`g_t` is, in turn, and the answer, `eval_params`, is the average u. From
  :math:`y_0 = z_1`, for t = 1, 2, ...,

  .. math::
    z_t &= \frac{t y_{t-1} + \sum_{s<t} s x_s}{\sum_{s \le t} s}, \qquad
    \eta_t = \frac{2 c D}{\sqrt{1 + \sum_{s<t} s^2 \|g_s - m_s\|^2}} \\
    x_t &= \Pi(y_{t-1} - t \eta_t m_t), \qquad
    u_t = \frac{\sum_{s \le t} s x_s}{\sum_{s \le t} s}, \qquad
    y_t = \Pi(y_{t-1} - t \eta_t g_t)

  It is a whole recipe, as `u_dog` is.

  Args:
    learning_rate: the factor :math:`c`, at least 0, or a schedule of the count of updates; 1 in
      the paper.
    diameter: :math:`D`, above 0, of the domain, a ball around the start onto which :math:`\Pi`
      projects: at least twice the distance to go.

  Returns:
    A recipe whose `update` needs `params`.

  Raises:
    ValueError: an argument is out of range, or `update` was called without `params`.

  Cost: no gradient evaluation; 16 bytes a parameter.

  References:
    Baseline: Kavis, Levy, Bach, Cevher, "UniXGrad: A Universal, Adaptive Algorithm with Optimal
      Guarantees for Constrained Optimization", 2019, arXiv:1910.13857

  Example:
    >>> import jax, jax.numpy as jnp
    >>> loss = lambda w: 0.5 * jnp.sum((w - 3) ** 2)
    >>> optimizer, w = unixgrad(diameter=10.0), jnp.zeros(2)
    >>> state = optimizer.init(w)
    >>> update = jax.jit(optimizer.update)
    >>> for _ in range(100):
    ...   updates, state = update(jax.grad(loss)(w), state, w)
    ...   w = w + updates
    >>> print(jnp.round(eval_params(state, w), 1))
    [3. 3.]
  """
  check.at_least("learning_rate", learning_rate, 0)
  check.above("diameter", diameter, 0)

  def init_fn(params):
    start = wide(params)
    zeros = jax.tree.map(jnp.zeros_like, start)
    nothing = jnp.zeros([], norm(start).dtype)
    return UnixgradState(jnp.zeros([], jnp.int32), start, zeros, zeros, zeros, nothing)

  def step(state, t, gradient, c):
    scale = 2 * c * diameter * t / root_of_squares(1.0, state.variation)
    return clipped(stepped(state.y, scale, gradient), diameter / 2)

  # The share of t among 1 + ... + t is 2 / (t + 1).
  def first_of_pair(state, t, m, c):
    average = mixed(state.average, step(state, t, m, c), 2 / (t + 1))
    return average, state._replace(average=average, m=m)

  def second_of_pair(state, t, g, c):
    y = step(state, t, g, c)
    gap = t * norm(jax.tree.map(jnp.subtract, g, state.m))
    state = state._replace(y=y, variation=root_of_squares(state.variation, gap))
    return mixed(state.average, y, 2 / (t + 2)), state

  def update_fn(updates, state, params=None, **extra_args):
    del extra_args
    check.params("unixgrad", params)
    c, count = rate_at(learning_rate, state.count), jnp.asarray(state.count)
    t = jnp.asarray(count // 2 + 1, state.variation.dtype)
    point, state = jax.lax.cond(
      count % 2 == 1, second_of_pair, first_of_pair, state, t, wide(updates), c
    )
    updates = _towards(state.start, point, params)
    return updates, state._replace(count=optax.safe_increment(state.count))

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def eval_params(state: UDogState | UnixgradState, params: Any) -> Any:
  """The average u, at which the second gradient of each pair is taken."""
  return _from(state.start, state.average, params)


def _over(numerator: jax.Array, root: jax.Array) -> jax.Array:
  """numerator / root; nothing moves before the first gradient that isn't 0."""
  return jnp.where(root > 0, numerator / jnp.where(root > 0, root, 1), 0)


def _from(start: Any, displacement: Any, like: Any) -> Any:
  return jax.tree.map(lambda s, d, w: (s + d).astype(w.dtype), start, displacement, like)


def _towards(start: Any, displacement: Any, params: Any) -> Any:
  """The update that takes the parameters to `start + displacement`."""
  return jax.tree.map(
    lambda s, d, w: (s - w.astype(s.dtype) + d).astype(w.dtype), start, displacement, params
  )
