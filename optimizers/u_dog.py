"""U-DoG and UniXGrad: accelerated descent with two gradients a step and no step size."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxrl import check

from ._online import clipped, mixed, norm, rate_at, root_of_squares, stepped
from ._sharpness import wide

replaces_gradient = True


class UDogState(NamedTuple):
  """State of `u_dog`; points are kept as their displacements from the start.

  Attributes:
    count: updates so far.
    start: the parameters at the start.
    y: the leading point.
    average: the answer, u.
    distance: the largest so far from the start, of x and y.
    weight: of the coming step, the sum of all distances.
    total: the sum of all weights, the coming one included.
    first: norm of the first gradient.
    variation: root of the weighted squared differences of both gradients.
  """

  count: jax.typing.ArrayLike
  start: Any
  y: Any
  average: Any
  distance: jax.Array
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
  variation: jax.Array


def u_dog(
  learning_rate: float | optax.Schedule = 1.0,
  *,
  reps_rel: float = 1e-6,
  eps: float = 1e-8,
  radius: float | None = None,
) -> optax.GradientTransformationExtraArgs:
  r"""UniXGrad whose step sizes are the distance covered so far over the gradients' variation.

  The parameters are :math:`z_t`, at which :math:`m_t` was taken, and the answer, `eval_params`,
  is the average :math:`u_t`. From :math:`x_0 = y_0 = z_0` and
  :math:`\bar r_0 = \mathrm{reps\_rel} (1 + \|x_0\|)`, for t = 0, 1, ...,

  .. math::
    \omega_t &= \textstyle\sum_{k \le t} \bar r_k, \qquad \alpha_t = \omega_t / \bar r_t, \qquad
    z_t = \frac{\omega_t y_t + \sum_{k < t} \omega_k x_{k+1}}{\sum_{k \le t} \omega_k} \\
    x_{t+1} &= \Pi\Big( y_t - c \frac{\omega_t}{\sqrt{G_t}} m_t \Big), \qquad
    u_t = \frac{\sum_{k \le t} \omega_k x_{k+1}}{\sum_{k \le t} \omega_k}, \qquad
    g_t = \nabla f(u_t) \\
    y_{t+1} &= \Pi\Big( y_t - c \frac{\omega_t}{\sqrt{G_{t+1}}} g_t \Big), \qquad
    \bar r_{t+1} = \max(\bar r_t, \|x_{t+1} - x_0\|, \|y_{t+1} - x_0\|) \\
    G_t &= \epsilon + \|m_0\|^2 + \textstyle\sum_{k < t} \alpha_k^2 \|g_k - m_k\|^2

  It is a whole recipe: no learning rate has to be tuned, no averaging added, and what stands
  around it in a chain would disturb the distances, as weight decay does.

  Args:
    learning_rate: the factor :math:`c`, at least 0, or a schedule of the step count. The
      method is made for 1.
    reps_rel: the first distance, relative to the parameters', above 0. Too small a one costs
      steps until the distance has grown; 1e-4 is advised for networks with batch normalisation.
    eps: :math:`\epsilon`, at least 0.
    radius: of the ball around the start onto which :math:`\Pi` projects, above 0; by default
      there is none.

  Returns:
    A recipe whose `update` needs `params` and `value_fn`, the loss of this step's batch.

  Raises:
    ValueError: an argument is out of range, or `update` was called without `params`.
    TypeError: `update` was called without `value_fn`.

  Cost: one gradient evaluation beyond the incoming one; 12 bytes a parameter.

  Notes:
    A variant. Points, weights and the order of the steps are the paper's. Its sums :math:`G`
    are known to us by their order alone (each at least the one before, that of x before that
    of y); those above are a reconstruction, and others that keep the order ended within a few
    per cent of them. Both gradients are of one batch, where the paper draws one for each.
    Multiplying the loss by a constant changes nothing but what :math:`\epsilon` does.

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
    >>> for _ in range(50):
    ...   updates, state = optimizer.update(jax.grad(loss)(w), state, w, value_fn=loss)
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
      *(jnp.zeros([], jnp.int32), start, zeros, zeros),
      *(distance, distance, distance, nothing, nothing),
    )

  def update_fn(updates, state, params=None, *, value_fn=None, **extra_args):
    del extra_args
    check.params("u_dog", params)
    value_fn = check.value_fn("u_dog", value_fn)
    c = rate_at(learning_rate, state.count)
    m = wide(updates)
    first = jnp.where(state.count == 0, norm(m), state.first)

    def step(gradient, variation):
      scale = _over(c * state.weight, root_of_squares(jnp.sqrt(eps), first, variation))
      return clipped(stepped(state.y, scale, gradient), radius)

    x = step(m, state.variation)
    average = mixed(state.average, x, state.weight / state.total)
    g = wide(jax.grad(value_fn)(_from(state.start, average, params)))
    alpha = state.weight / state.distance
    difference = jax.tree.map(jnp.subtract, g, m)
    variation = root_of_squares(state.variation, alpha * norm(difference))
    y = step(g, variation)

    distance = jnp.maximum(state.distance, jnp.maximum(norm(x), norm(y)))
    weight = state.weight + distance
    total = state.total + weight
    updates = _towards(state.start, mixed(average, y, weight / total), params)
    count = optax.safe_increment(state.count)
    return updates, UDogState(
      *(count, state.start, y, average, distance, weight, total, first, variation)
    )

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def unixgrad(
  learning_rate: float | optax.Schedule = 1.0,
  *,
  diameter: float,
) -> optax.GradientTransformationExtraArgs:
  r"""An extragradient method that adapts to smoothness and noise, given the domain's size.

  The parameters are :math:`z_t`, at which :math:`m_t` was taken, and the answer, `eval_params`,
  is the average :math:`u_t`. From :math:`y_0 = z_1`, for t = 1, 2, ...,

  .. math::
    z_t &= \frac{t y_{t-1} + \sum_{s<t} s x_s}{\sum_{s \le t} s}, \qquad
    \eta_t = \frac{2 c D}{\sqrt{1 + \sum_{s<t} s^2 \|g_s - m_s\|^2}} \\
    x_t &= \Pi(y_{t-1} - t \eta_t m_t), \qquad
    u_t = \frac{\sum_{s \le t} s x_s}{\sum_{s \le t} s}, \qquad g_t = \nabla f(u_t), \qquad
    y_t = \Pi(y_{t-1} - t \eta_t g_t)

  It is a whole recipe, as `u_dog` is.

  Args:
    learning_rate: the factor :math:`c`, at least 0, or a schedule of the step count; 1 in the
      paper.
    diameter: :math:`D`, above 0, of the domain, a ball around the start onto which :math:`\Pi`
      projects: at least twice the distance to go.

  Returns:
    A recipe whose `update` needs `params` and `value_fn`, the loss of this step's batch.

  Raises:
    ValueError: an argument is out of range, or `update` was called without `params`.
    TypeError: `update` was called without `value_fn`.

  Cost: one gradient evaluation beyond the incoming one; 12 bytes a parameter.

  References:
    Baseline: Kavis, Levy, Bach, Cevher, "UniXGrad: A Universal, Adaptive Algorithm with Optimal
      Guarantees for Constrained Optimization", 2019, arXiv:1910.13857

  Example:
    >>> import jax, jax.numpy as jnp
    >>> loss = lambda w: 0.5 * jnp.sum((w - 3) ** 2)
    >>> optimizer, w = unixgrad(diameter=10.0), jnp.zeros(2)
    >>> state = optimizer.init(w)
    >>> for _ in range(50):
    ...   updates, state = optimizer.update(jax.grad(loss)(w), state, w, value_fn=loss)
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
    return UnixgradState(jnp.zeros([], jnp.int32), start, zeros, zeros, nothing)

  def update_fn(updates, state, params=None, *, value_fn=None, **extra_args):
    del extra_args
    check.params("unixgrad", params)
    value_fn = check.value_fn("unixgrad", value_fn)
    c = rate_at(learning_rate, state.count)
    count = optax.safe_increment(state.count)
    t = jnp.asarray(count, state.variation.dtype)
    m = wide(updates)

    def step(gradient):
      scale = _over(2 * c * diameter * t, root_of_squares(1.0, state.variation))
      return clipped(stepped(state.y, scale, gradient), diameter / 2)

    # The share of t among 1 + ... + t, and after this step that of t + 1 among one more.
    x = step(m)
    average = mixed(state.average, x, 2 / (t + 1))
    g = wide(jax.grad(value_fn)(_from(state.start, average, params)))
    y = step(g)
    difference = jax.tree.map(jnp.subtract, g, m)
    variation = root_of_squares(state.variation, t * norm(difference))
    updates = _towards(state.start, mixed(average, y, 2 / (t + 2)), params)
    return updates, UnixgradState(count, state.start, y, average, variation)

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def eval_params(state: UDogState | UnixgradState, params: Any) -> Any:
  """The average u, at which the second gradient of each step is taken."""
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
