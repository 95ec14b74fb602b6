"""Online-to-non-convex conversion: an online learner of steps becomes an optimizer."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxrl import check

from ._online import mixed, stepped, towards
from ._sharpness import wide

SCALINGS = ("exponential", "none", "uniform")


class OnlineToNonconvexState(NamedTuple):
  """State of `online_to_nonconvex`.

  Attributes:
    count: updates so far.
    seed: of the random scalings.
    x: the iterate to which the next step is added.
    step: the learner's point, the next step.
    average: of the parameters in this epoch so far.
    inner: the learner's state.
  """

  count: jax.typing.ArrayLike
  seed: jax.Array
  x: Any
  step: Any
  average: Any
  inner: Any


def online_to_nonconvex(
  learner: optax.GradientTransformation, *, scaling: str = "uniform", epoch: int = 100
) -> optax.GradientTransformationExtraArgs:
  r"""Lets an online learner choose every step, as its decision against a linear loss.

  The parameters are :math:`w_n`, at which :math:`g_n` was taken, and the learner's decision is
  the step :math:`\Delta_n`, from :math:`\Delta_1 = 0`. For n = 1, 2, ..., with
  :math:`s_n \sim U[0, 1]`,

  .. math::
    w_n = x_{n-1} + s_n \Delta_n, \qquad x_n = x_{n-1} + \Delta_n, \qquad
    \Delta_{n+1} = \mathrm{learner}(\Delta_n, g_n)

  By the random point between, :math:`\langle g_n, \Delta_n \rangle` is in expectation what the
  step changes of the loss, however wild the loss. So the learner's regret against steps of
  length D bounds the mean gradient over an epoch of T steps, at the mean parameters
  :math:`\bar w`, which are the answer, `eval_params`: a loss that need be neither convex nor
  smooth becomes stationary in Goldstein's sense, within :math:`\delta = D T`.

  Args:
    learner: any optimizer with a learning rate; its parameters are :math:`\Delta`, kept from
      one epoch to the next. The theory's are `projected_ogd` (rate
      :math:`D / (G \sqrt T)`, radius D, for gradients of size G), and for smooth losses without
      noise `optimistic_ogd`. Of `scale_free_ogd` only D is to be chosen.
    scaling: of :math:`s_n`: "uniform"; "exponential", of mean 1, with
      :math:`w_n = x_n = x_{n-1} + s_n \Delta_n`; or "none", 1.
    epoch: T, at least 1, after how many steps the mean starts anew. In theory
      :math:`T = (G N \delta / F)^{2/3}` for N steps and a loss that lies F above its infimum.

  Returns:
    A recipe whose `update` needs `params`.

  Raises:
    ValueError: an argument is out of range, or `update` was called without `params`.

  Cost: no gradient evaluation; 12 bytes a parameter, and the state of `learner`.

  Notes:
    The paper returns the mean of an epoch at random; here the answer is that of the epoch under
    way, as far as it is, or of the last one right after its end. The mean is over points at
    which gradients were taken. `add_decayed_weights((1 - beta) / eta) | sgd(eta)` as the
    learner, without scaling, is SGD with heavy-ball momentum. The learner is handed the
    gradient alone. On the digits a small MLP trains well by `projected_ogd(0.01, radius=0.1)`.

  References:
    [251] Cutkosky, Mehta, Orabona, "Optimal Stochastic Non-smooth Non-convex Optimization
      through Online-to-Non-convex Conversion", 2023, arXiv:2302.03775
    Zhang, Cutkosky, "Random Scaling and Momentum for Non-smooth Non-convex Optimization", 2024,
      arXiv:2405.09742 (exponential)

  Example:
    >>> import jax.numpy as jnp
    >>> from optimizers.online_learners import projected_ogd
    >>> optimizer = online_to_nonconvex(projected_ogd(1.0, radius=5.0), scaling="none")
    >>> w = jnp.array([1.0, 1.0])
    >>> updates, _ = optimizer.update(jnp.array([-6.0, 8.0]), optimizer.init(w), w)
    >>> print(updates)
    [ 3. -4.]
  """
  check.one_of("scaling", scaling, SCALINGS)
  check.whole("epoch", epoch, 1)
  learner = optax.with_extra_args_support(learner)

  def init_fn(params):
    x = wide(params)
    step = jax.tree.map(jnp.zeros_like, x)
    zero = jnp.zeros([], jnp.int32)
    return OnlineToNonconvexState(zero, zero, x, step, x, learner.init(step))

  def update_fn(updates, state, params=None, **extra_args):
    del extra_args
    check.params("online_to_nonconvex", params)
    number = jnp.asarray(1 + jnp.asarray(state.count) % epoch, float)
    average = mixed(state.average, wide(params), 1 / number)
    moves, inner = learner.update(wide(updates), state.inner, state.step)
    step = optax.apply_updates(state.step, moves)

    s = _scale(scaling, jax.random.fold_in(jax.random.key(state.seed), state.count))
    point = stepped(state.x, -s, step)
    x = jax.tree.map(jnp.add, state.x, step) if scaling == "uniform" else point
    updates = towards(point, params)
    count = optax.safe_increment(state.count)
    return updates, OnlineToNonconvexState(count, state.seed, x, step, average, inner)

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def eval_params(state: OnlineToNonconvexState, params: Any) -> Any:
  """The mean of this epoch's parameters."""
  return jax.tree.map(lambda a, w: a.astype(w.dtype), state.average, params)


def _scale(scaling: str, key: jax.Array) -> jax.Array:
  if scaling == "none":
    return jnp.ones([], jnp.float32)
  draw = jax.random.uniform if scaling == "uniform" else jax.random.exponential
  return draw(key, dtype=jnp.float32)
