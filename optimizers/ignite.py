"""IGNITE: train surrogates whose predictions change little around their parameters."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxrl import check, oracle

from ._sharpness import moved, scaled_to, wide

replaces_gradient = True


class IgniteState(NamedTuple):
  """State of `ignite`: the multiplier, and what a run logs."""

  lam: jax.Array
  metrics: dict[str, jax.Array]


def ignite(
  rho: float = 0.05,
  r: float = 0.05,
  *,
  lam: float = 1e-3,
  eta: float = 1e-3,
  epsilon: float = 0.1,
  clamp: bool = False,
) -> optax.GradientTransformationExtraArgs:
  r"""Adds a penalty on the sharpness of the mean prediction, with its own multiplier.

  A surrogate of an expensive function is searched for its maximum away from the data, where
  sharp surrogates err. With :math:`h(w)` the mean of the model's outputs over this step's
  batch (not its loss), and :math:`g` the incoming gradient of the loss,

  .. math::
    n = \|\nabla h(w)\|, \qquad \hat w = w + r \, \nabla h(w) / n, \qquad
    u = g + \lambda \tfrac{\rho}{r} \big(\nabla h(\hat w) - \nabla h(w)\big), \qquad
    \lambda \leftarrow \lambda + \eta (\rho n - \epsilon),

  a finite difference for the gradient of :math:`L + \lambda \rho \|\nabla h\|`: the loss
  subject to :math:`\max_{\|d\| \le \rho} h(w + d) - h(w) \le \epsilon` to first order. It
  comes first in a chain: `optax.chain(ignite(), optax.adam(1e-3))`.

  Args:
    rho: radius :math:`\rho` of the sharpness, at least 0.
    r: step of the finite difference, above 0.
    lam: the multiplier :math:`\lambda` at the start.
    eta: step size :math:`\eta` of the multiplier, at least 0; at 0 it stays, which is IGNITE2.
    epsilon: sharpness :math:`\epsilon` that is allowed, at least 0.
    clamp: keeps the multiplier from becoming negative.

  Returns:
    A gradient transformation whose `update` needs `params` and an Oracle with `outputs` as
    `value_fn`. `metrics` hold the multiplier and the sharpness :math:`\rho n`.

  Raises:
    ValueError: an argument is out of range, or `update` was called without `params`.
    TypeError: `value_fn` is not a `jaxrl.oracle.Oracle` with `outputs`.

  Cost: two gradient evaluations (of the mean output) beyond the incoming one; 12 bytes of
  state in all; a temporary copy of the parameters.

  Notes:
    `epsilon` is that of the official scripts, all of which run with 0.1; the command line's
    default is 1e-3. They leave the multiplier free, so that it turns negative, and the
    penalty into a reward, once the surrogate is flatter than was asked for: `clamp=True` is
    the usual step of dual ascent. An ensemble has a multiplier for each member: `jax.vmap`
    the update over members. Of several outputs the mean is that of their sum over an example.
    Rows that a mask leaves out count in the mean, for outputs know no mask.

  References:
    [42] Dao, Le Nguyen, Truong, Hoang, "Incorporating Surrogate Gradient Norm to Improve
      Offline Optimization Techniques", 2024, arXiv:2503.04242

  Example:
    >>> import jax, jax.numpy as jnp
    >>> from jaxrl.oracle import Oracle
    >>> model = lambda w: jnp.array([[w**2]])
    >>> optimizer, w = ignite(rho=0.5, r=0.5, lam=1.0), jnp.array(2.0)
    >>> value_fn = Oracle(lambda w: 0 * w, w, outputs=model)
    >>> gradient, state = optimizer.update(
    ...   jnp.array(0.0), optimizer.init(w), w, value_fn=value_fn)
    >>> float(gradient)  # the slope 2 * w of w**2 is 1 larger at w + 0.5
    1.0
  """
  check.at_least("rho", rho, 0)
  check.above("r", r, 0)
  check.at_least("eta", eta, 0)
  check.at_least("epsilon", epsilon, 0)

  def init_fn(params):
    del params
    start = jnp.asarray(lam, jnp.float32)
    return IgniteState(start, {"lam": start, "sharpness": jnp.zeros([], jnp.float32)})

  def update_fn(updates, state, params=None, *, value_fn=None, **extra_args):
    del extra_args
    check.params("ignite", params)
    slope_of = jax.grad(_mean_output(oracle.need_oracle("ignite", value_fn)))
    slope = wide(slope_of(params))
    steeper = wide(slope_of(moved(params, scaled_to(slope, r, 0.0))))
    strength = state.lam * rho / r
    updates = jax.tree.map(
      lambda g, s, n: (g.astype(s.dtype) + strength * (n - s)).astype(g.dtype),
      updates,
      slope,
      steeper,
    )
    sharpness = jnp.asarray(rho * optax.tree.norm(slope), jnp.float32)
    after = jnp.asarray(state.lam + eta * (sharpness - epsilon), jnp.float32)
    after = jnp.maximum(after, 0) if clamp else after
    return updates, IgniteState(after, {"lam": after, "sharpness": sharpness})

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _mean_output(value_fn: oracle.Oracle) -> Any:
  def mean(params):
    predictions = oracle.named_outputs(value_fn.outputs(params))["predictions"]
    return jnp.sum(predictions.astype(jnp.promote_types(predictions.dtype, jnp.float32))) / len(
      predictions
    )

  return mean
