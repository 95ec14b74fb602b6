"""Training in other coordinates than the parameters': weight normalization and its kin."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxrl import check

from .weights._reparameterization import Reparameterization


class ReparameterizedState(NamedTuple):
  """State of `reparameterized`: the coordinates, and the state of what trains them."""

  raw: Any
  inner: Any


def reparameterized(
  inner: optax.GradientTransformation, by: Reparameterization
) -> optax.GradientTransformationExtraArgs:
  r"""Lets an optimizer train coordinates that stand for the parameters.

  With the parameters :math:`w = f(v)` of coordinates :math:`v`,

  .. math::
    v_{t+1} = v_t + \mathrm{inner}(J_f(v_t)^\top g_t), \qquad u_t = f(v_{t+1}) - w_t

  The model, checkpoints and evaluation go on with the parameters: any model trains by
  `reparameterized(adam(1e-3), weight_norm())`.

  Args:
    inner: with a learning rate, since it moves the coordinates. It sees them as its
      parameters, and `value_fn` as a function of them.
    by: the coordinates, such as `weight_norm()`.

  Returns:
    A gradient transformation whose `update` needs `params`.

  Raises:
    TypeError: `by` is no Reparameterization.
    ValueError: `update` was called without `params`.

  Cost: no gradient evaluation; a copy of the parameters in float32, and the state of `inner`.

  Notes:
    It comes last in a chain: what changes the parameters otherwise is undone by the next
    update. Methods that need the parts of the loss (an Oracle) stand in front, since
    `inner` is handed the loss alone.

  References:
    Baseline: Salimans, Kingma, "Weight Normalization: A Simple Reparameterization to
      Accelerate Training of Deep Neural Networks", 2016, arXiv:1602.07868

  Example:
    >>> import jax.numpy as jnp, optax
    >>> from optimizers.weights.weight_norm import weight_norm
    >>> optimizer = reparameterized(optax.sgd(1.0), weight_norm())
    >>> w, gradient = jnp.array([[3.0], [4.0]]), jnp.array([[0.6], [0.8]])
    >>> updates, state = optimizer.update(gradient, optimizer.init(w), w)
    >>> print((w + updates).ravel())  # the length alone falls by 1
    [2.4 3.2]
  """
  check.record("by", by, Reparameterization)
  inner = optax.with_extra_args_support(inner)

  def init_fn(params):
    raw = by.init(jax.tree.map(_wide, params))
    return ReparameterizedState(raw, inner.init(raw))

  def update_fn(updates, state, params=None, *, value_fn=None, **extra_args):
    check.params("reparameterized", params)

    def weights(raw):
      return _cast_as(by.weights(raw), params)

    def of_raw(gradient):
      return pull_back(jax.tree.map(_wide, gradient))[0]

    _, pull_back = jax.vjp(by.weights, state.raw)
    extras = dict(extra_args)
    if value_fn is not None:
      extras["value_fn"] = lambda raw: value_fn(weights(raw))
    if "grad" in extras:
      extras["grad"] = of_raw(_masked_as(updates, extras["grad"]))
    raw_updates, inner_state = inner.update(of_raw(updates), state.inner, state.raw, **extras)
    raw = optax.apply_updates(state.raw, raw_updates)
    moved = jax.tree.map(lambda new, old: new - _wide(old), by.weights(raw), params)
    return _cast_as(moved, updates), ReparameterizedState(raw, inner_state)

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _wide(x: Any) -> jax.Array:
  return jnp.asarray(x, jnp.promote_types(jnp.result_type(x), jnp.float32))


def _cast_as(tree: Any, like: Any) -> Any:
  return jax.tree.map(lambda x, y: x.astype(y.dtype), tree, like)


def _masked_as(like: Any, tree: Any) -> Any:
  """`tree`, masked where `like` is: under `optax.masked`, extra arguments come whole."""

  def is_masked(node):
    return isinstance(node, optax.MaskedNode)

  return jax.tree.map(lambda x, y: x if is_masked(x) else y, like, tree, is_leaf=is_masked)
