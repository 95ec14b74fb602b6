"""Gravity: gradient descent whose step shrinks where the slope is among the tensor's steepest."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxrl import check, reduce


class GravityState(NamedTuple):
  """State of `gravity`: the running step, to which the first update adds what `seed` draws."""

  count: jax.typing.ArrayLike
  seed: jax.Array
  velocity: Any


def gravity(
  learning_rate: float | optax.Schedule = 0.1, *, alpha: float = 0.01, beta: float = 0.9
) -> optax.GradientTransformationExtraArgs:
  r"""A ball rolling down a slope: beyond a certain steepness it covers less ground a step.

  At step t = 1, 2, ..., for each tensor with gradient g, entry by entry,

  .. math::
    \zeta = \frac{g}{1 + (g \max |g|)^2}, \qquad
    \hat\beta = \frac{\beta t + 1}{t + 2}, \qquad
    V \leftarrow \hat\beta V + (1 - \hat\beta) \zeta, \qquad u = -\eta V,

  the maximum over the tensor. At the start
  :math:`V \sim \mathcal{N}(0, (\alpha / \eta)^2)`.

  Args:
    learning_rate: :math:`\eta`, at least 0, or a schedule of the step count, of which the
      start of V takes the first value; where that is 0, V starts at 0.
    alpha: size :math:`\alpha` of the first random steps, at least 0.
    beta: :math:`\beta`, in [0, 1), to which :math:`\hat\beta` grows.

  Returns:
    A recipe.

  Raises:
    ValueError: an argument is out of range.

  Cost: no gradient evaluation; 4 bytes a parameter.

  Notes:
    As :math:`|\zeta| \le 1 / (2 \max |g|)`, large gradients give small steps. The official
    PyTorch code counts from t = 1, its Keras code from 0; the former is followed. A zero
    gradient, on which both divide by zero, gives :math:`\zeta = 0`.

  References:
    [229] Bahrami, Pouriyan Zadeh, "Gravity Optimizer: a Kinematic Approach on Optimization in
      Deep Learning", 2021, arXiv:2101.09192

  Example:
    >>> import jax.numpy as jnp
    >>> optimizer = gravity(0.1, alpha=0.0)
    >>> gradient = jnp.array([0.5, 1.0, 0.0])
    >>> updates, _ = optimizer.update(gradient, optimizer.init(gradient))
    >>> print(jnp.round(updates, 5))  # -0.1 * (1 - 1.9 / 3) * (0.4, 0.5, 0)
    [-0.01467 -0.01833 -0.     ]
  """
  check.at_least("learning_rate", learning_rate, 0)
  check.at_least("alpha", alpha, 0)
  check.below("beta", beta, 0, 1)

  def init_fn(params):
    velocity = jax.tree.map(lambda p: jnp.zeros(jnp.shape(p), _wide(p)), params)
    return GravityState(jnp.zeros([], jnp.int32), jnp.zeros([], jnp.int32), velocity)

  def update_fn(updates, state, params=None, **extra_args):
    del params, extra_args
    rate = learning_rate(state.count) if callable(learning_rate) else learning_rate
    count = jnp.asarray(optax.safe_increment(state.count))
    inertia = (beta * count + 1) / (count + 2)

    size = reduce.ratio(alpha, jnp.asarray(rate, jnp.float32))
    key = jax.random.fold_in(jax.random.key(state.seed), state.count)
    velocity = jax.lax.cond(state.count == 0, _pushed, _left, state.velocity, size, key)
    velocity = jax.tree.map(
      lambda v, g: (inertia * v + (1 - inertia) * _flattened(g.astype(v.dtype))).astype(v.dtype),
      velocity,
      updates,
    )
    updates = jax.tree.map(lambda v, g: (-(rate * v)).astype(g.dtype), velocity, updates)
    return updates, GravityState(count, state.seed, velocity)

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _pushed(velocity: Any, size: jax.Array, key: jax.Array) -> Any:
  noise = optax.tree.random_like(key, velocity, jax.random.normal, dtype=jnp.float32)
  return jax.tree.map(lambda v, n: v + (size * n).astype(v.dtype), velocity, noise)


def _left(velocity: Any, size: jax.Array, key: jax.Array) -> Any:
  del size, key
  return velocity


def _flattened(gradient: jax.Array) -> jax.Array:
  steepest = jnp.max(jnp.abs(gradient), initial=0)
  return gradient / (1 + (gradient * steepest) ** 2)


def _wide(x: Any) -> Any:
  return jnp.promote_types(jnp.result_type(x), jnp.float32)
