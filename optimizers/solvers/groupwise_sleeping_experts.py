"""Groupwise regret: one learner for each of several overlapping groups, and experts over them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrl import check

from .experts import Experts, ada_normal_hedge


class OnlineRegression(NamedTuple):
  """Functions that predict targets one by one; all are pure.

  Attributes:
    init: `init() -> state`.
    predict: `predict(state, inputs) -> prediction`, of one example's inputs `[d]`.
    update: `update(state, inputs, target) -> state`.
  """

  init: Callable[[], Any]
  predict: Callable[[Any, jax.Array], jax.Array]
  update: Callable[[Any, jax.Array, jax.typing.ArrayLike], Any]


class GroupwiseRegression(NamedTuple):
  """Functions that predict targets of examples in groups; all are pure.

  Attributes:
    init: `init() -> state`.
    predict: `predict(state, inputs, groups) -> prediction`, `groups` being booleans, one a
      group, of which any number may hold.
    update: `update(state, inputs, groups, target) -> state`.
  """

  init: Callable[[], Any]
  predict: Callable[[Any, jax.Array, jax.Array], jax.Array]
  update: Callable[[Any, jax.Array, jax.Array, jax.typing.ArrayLike], Any]


class OnlineRidgeState(NamedTuple):
  """State of `online_ridge`: the inverse of its matrix, and its vector."""

  inverse: jax.Array
  moment: jax.Array


class GroupwiseState(NamedTuple):
  """State of `groupwise_sleeping_experts`: the groups' learners, on a first axis, and experts."""

  learners: Any
  experts: Any


def online_ridge(size: int, *, lam: float = 1.0) -> OnlineRegression:
  r"""Ridge regression on all examples so far.

  .. math::
    \theta_t = \Big( \lambda I + \sum_{s < t} x_s x_s^\top \Big)^{-1} \sum_{s < t} x_s y_s,
    \qquad \hat y_t = \langle \theta_t, x_t \rangle

  Args:
    size: d, the number of inputs, at least 1.
    lam: :math:`\lambda`, above 0.

  Returns:
    An online regression.

  Raises:
    ValueError: an argument is out of range.

  Cost: :math:`d^2` numbers, and as many operations an example: the inverse takes each by the
    formula of Sherman and Morrison.

  References:
    Baseline: Azoury, Warmuth, "Relative Loss Bounds for On-Line Density Estimation with the
      Exponential Family of Distributions", 2001

  Example:
    >>> import jax.numpy as jnp
    >>> ridge = online_ridge(1, lam=1.0)
    >>> state = ridge.update(ridge.init(), jnp.array([1.0]), 4.0)
    >>> float(ridge.predict(state, jnp.array([3.0])))  # 3 * 4 / (1 + 1)
    6.0
  """
  check.whole("size", size, 1)
  check.above("lam", lam, 0)

  def init():
    return OnlineRidgeState(jnp.eye(size) / lam, jnp.zeros(size))

  def predict(state, inputs):
    return inputs @ (state.inverse @ state.moment)

  def update(state, inputs, target):
    direction = state.inverse @ inputs
    inverse = state.inverse - jnp.outer(direction, direction) / (1 + inputs @ direction)
    return OnlineRidgeState(inverse, state.moment + inputs * target)

  return OnlineRegression(init, predict, update)


def groupwise_sleeping_experts(
  learner: OnlineRegression,
  groups: int,
  *,
  experts: Experts | None = None,
  bound: float = 1.0,
) -> GroupwiseRegression:
  r"""Predictions that in every group are nearly as good as that group's own best ones.

  Each group g has a learner of its own that sees its examples alone. In each round those whose
  group holds, :math:`I_t`, are awake, and experts mix their predictions,

  .. math::
    \hat y_t = \sum_{g \in I_t} p_{t,g} \hat y_{t,g}, \qquad
    \ell_{t,g} = \min\Big( 1, \frac{(\hat y_{t,g} - y_t)^2}{B^2} \Big) .

  The regret in a group is that of its learner and of its expert, and no group's learner has to
  know the others, however they overlap.

  Args:
    learner: of one group, such as `online_ridge(size)`.
    groups: their number, at least 1. One of them should hold always; where none holds, the
      prediction is 0 and nothing is learnt.
    experts: `ada_normal_hedge()` (the default) or `hedge(learning_rate)`.
    bound: B, above 0: how far a prediction may be off.

  Returns:
    A groupwise regression.

  Raises:
    ValueError: an argument is out of range.
    TypeError: `learner` is no OnlineRegression, or `experts` are no Experts.

  Cost: all groups' learners take every example at once; the states of those who sleep are put
    back as they were.

  Notes:
    It stands among the solvers, since it has no parameters that a gradient moves: it is handed
    examples, and calls its parts by `init`, `predict` and `update`.

  References:
    [262] Acharya, Arunachaleswaran, Kannan, Roth, Ziani, "Oracle Efficient Algorithms for
      Groupwise Regret", 2023, arXiv:2310.04652

  Example:
    >>> import jax.numpy as jnp
    >>> method = groupwise_sleeping_experts(online_ridge(1), groups=2, bound=5.0)
    >>> x, everyone, few = jnp.ones(1), jnp.array([True, False]), jnp.array([True, True])
    >>> state = method.update(method.init(), x, everyone, 4.0)
    >>> float(method.predict(state, x, everyone))
    2.0
    >>> float(method.predict(state, x, few)) < 2  # the second learner says 0
    True
  """
  check.record("learner", learner, OnlineRegression)
  check.whole("groups", groups, 1)
  mixer = ada_normal_hedge() if experts is None else experts
  check.record("experts", mixer, Experts)
  check.above("bound", bound, 0)

  def init():
    one = learner.init()
    each = jax.tree.map(lambda x: jnp.broadcast_to(x, (groups, *jnp.shape(x))), one)
    return GroupwiseState(each, mixer.init(groups))

  def predictions(state, inputs):
    return jax.vmap(lambda one: learner.predict(one, inputs))(state.learners)

  def predict(state, inputs, held):
    return mixer.weights(state.experts, held) @ predictions(state, inputs)

  def update(state, inputs, held, target):
    losses = jnp.minimum(1, ((predictions(state, inputs) - target) / bound) ** 2)

    def learnt(one, holds):
      after = learner.update(one, inputs, target)
      return jax.tree.map(lambda new, old: jnp.where(holds, new, old), after, one)

    learners = jax.vmap(learnt)(state.learners, held)
    return GroupwiseState(learners, mixer.update(state.experts, losses, held))

  return GroupwiseRegression(init, predict, update)
