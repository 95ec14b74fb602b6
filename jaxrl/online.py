"""Online learning: streams of losses, who plays against them, and the regret of what is played.

Everything is a pure function of arrays, made of scans: `jax.jit` and `jax.vmap` work on all of it.
A regret compares the losses `[T]` of the decisions with those of comparators, `[T]` of one or
`[T, K]` of several. It is summed as differences, so that long streams keep their digits.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from . import check
from .oracle import Oracle


class Stream(NamedTuple):
  """The losses of T rounds.

  Attributes:
    loss: `loss(params, shown)`, the scalar loss of a round by what is shown of it.
    rounds: a tree whose leaves have a leading axis over the T rounds.
  """

  loss: Callable[[Any, Any], jax.Array]
  rounds: Any


class Played(NamedTuple):
  """A run against a stream.

  Attributes:
    decisions: the parameters in each round, before its loss was seen; leaves `[T, ...]`.
    losses: their losses, `[T]`.
  """

  decisions: Any
  losses: jax.Array


class Variation(NamedTuple):
  """What the bounds for the stochastically extended adversarial model are made of.

  Attributes:
    stochastic: the variances of the gradients, summed up to each round, `[T]`.
    adversarial: the squared changes of the expected gradients from round to round, likewise.
  """

  stochastic: jax.Array
  adversarial: jax.Array


def linear(slopes: Any) -> Stream:
  r"""Losses :math:`\langle g_t, x \rangle`, such as the costs of experts.

  Args:
    slopes: :math:`g_t`, a tree like the parameters, with a leading axis over the rounds.

  Example:
    >>> import jax.numpy as jnp
    >>> stream = linear(jnp.array([[1.0, 0.0], [0.0, 2.0]]))
    >>> print(losses_at(stream, jnp.eye(2)))  # of both experts
    [[1. 0.]
     [0. 2.]]
  """

  def loss(params, slope):
    return jnp.asarray(optax.tree.vdot(params, slope))

  return Stream(loss, slopes)


def quadratic(targets: Any, curvature: float = 1.0) -> Stream:
  r"""Losses :math:`\tfrac{\lambda}{2} \|x - b_t\|^2`.

  Args:
    targets: :math:`b_t`, a tree like the parameters, with a leading axis over the rounds.
    curvature: :math:`\lambda`, at least 0.

  Example:
    >>> import jax.numpy as jnp
    >>> print(losses_along(quadratic(jnp.array([1.0, 3.0]), curvature=2.0), jnp.zeros(2)))
    [1. 9.]
  """
  check.at_least("curvature", curvature, 0)

  def loss(params, target):
    return curvature / 2 * optax.tree.norm(optax.tree.sub(params, target), squared=True)

  return Stream(loss, targets)


def sea_slopes(key: jax.Array, means: jax.Array, deviation: jax.typing.ArrayLike) -> jax.Array:
  r"""Gradients of the stochastically extended adversarial model: an adversary's, and noise.

  .. math::
    g_t = \mu_t + \sigma \epsilon_t, \qquad \epsilon_t \sim \mathcal{N}(0, I)

  Args:
    key: of the noise.
    means: what the adversary chose, `[T, d]`. Equal ones are the stochastic extreme.
    deviation: :math:`\sigma` of every entry; 0 is the adversarial extreme.

  Returns:
    The slopes `[T, d]` of linear losses.

  References:
    Baseline: Sachs, Hadiji, van Erven, Guzmán, "Between Stochastic and Adversarial Online
      Convex Optimization: Improved Regret Bounds via Smoothness", 2022, arXiv:2202.07554

  Example:
    >>> import jax, jax.numpy as jnp
    >>> print(sea_slopes(jax.random.key(0), jnp.array([[1.0], [2.0]]), 0.0).ravel())
    [1. 2.]
  """
  return means + deviation * jax.random.normal(key, means.shape, means.dtype)


def sea_variation(means: jax.Array, deviation: jax.typing.ArrayLike) -> Variation:
  r"""The variation of `sea_slopes`, which is known in advance.

  .. math::
    \sigma^2_{1:t} = \sum_{s \le t} E \|g_s - \mu_s\|^2, \qquad
    \Sigma^2_{1:t} = \sum_{1 < s \le t} \|\mu_s - \mu_{s-1}\|^2

  Args:
    means: `[T, d]`.
    deviation: of every entry, a number.

  Example:
    >>> import jax.numpy as jnp
    >>> variation = sea_variation(jnp.array([[0.0], [1.0], [3.0]]), 0.5)
    >>> print(variation.stochastic, variation.adversarial)
    [0.25 0.5  0.75] [0. 1. 5.]
  """
  rounds, size = means.shape
  changes = jnp.sum(jnp.diff(means, axis=0, prepend=means[:1]) ** 2, axis=1)
  variances = jnp.broadcast_to(size * jnp.asarray(deviation) ** 2, (rounds,))
  return Variation(jnp.cumsum(variances), jnp.cumsum(changes))


def play(
  optimizer: optax.GradientTransformation, stream: Stream, start: Any, hints: Any = None
) -> Played:
  """The decisions of an optimizer against a stream, round by round.

  Args:
    optimizer: it gets `value`, `grad` and `value_fn` of the round, as in training.
    stream: of T rounds.
    start: the first decision.
    hints: passed on as `hint`, one a round, with a leading axis over the rounds; each is
      about the next round. None passes nothing.

  Returns:
    The T decisions and their losses.

  Example:
    >>> import jax.numpy as jnp, optax
    >>> played = play(optax.sgd(0.5), quadratic(jnp.array([2.0, 2.0, 0.0])), jnp.array(0.0))
    >>> print(played.decisions, played.losses)
    [0.  1.  1.5] [2.    0.5   1.125]
  """
  optimizer = optax.with_extra_args_support(optimizer)
  start = jax.tree.map(jnp.asarray, start)

  def turn(carry, seen):
    params, state = carry
    shown, extras = seen
    value_fn = Oracle(lambda params: stream.loss(params, shown), params)
    value, grad = jax.value_and_grad(value_fn)(params)
    extras = {**extras, "value": value, "grad": grad, "value_fn": value_fn}
    updates, state = optimizer.update(grad, state, params, **extras)
    return (optax.apply_updates(params, updates), state), Played(params, value)

  extras = {} if hints is None else {"hint": hints}
  return jax.lax.scan(turn, (start, optimizer.init(start)), (stream.rounds, extras))[1]


def losses_at(stream: Stream, points: Any) -> jax.Array:
  """The losses `[T, K]` of K fixed points, whose leaves have a leading axis over them.

  Example:
    >>> import jax.numpy as jnp
    >>> print(losses_at(quadratic(jnp.array([1.0, 3.0])), jnp.array([1.0, 2.0])))
    [[0.  0.5]
     [2.  0.5]]
  """
  at_once = jax.vmap(stream.loss, in_axes=(0, None))
  return jax.lax.map(lambda shown: at_once(points, shown), stream.rounds)


def losses_along(stream: Stream, path: Any) -> jax.Array:
  """The losses `[T]` of a comparator that moves, its leaves with a leading axis over the rounds.

  Example:
    >>> import jax.numpy as jnp
    >>> print(losses_along(quadratic(jnp.array([1.0, 3.0])), jnp.array([1.0, 1.0])))
    [0. 2.]
  """
  return jax.vmap(stream.loss)(path, stream.rounds)


def path_length(path: Any) -> jax.Array:
  r"""How far a comparator moved up to each round, :math:`\sum_{1 < s \le t} \|u_s - u_{s-1}\|`.

  Args:
    path: leaves with a leading axis over the T rounds.

  Returns:
    `[T]`, the first entry 0.

  Example:
    >>> import jax.numpy as jnp
    >>> print(path_length(jnp.array([[0.0, 0.0], [3.0, 4.0], [3.0, 4.0]])))
    [0. 5. 5.]
  """
  steps = jax.tree.map(lambda x: jnp.diff(x, axis=0, prepend=x[:1]), path)
  return jnp.cumsum(jax.vmap(optax.tree.norm)(steps))


def static_regret(losses: jax.Array, comparators: jax.Array) -> jax.Array:
  r"""The regret against the best fixed comparator in hindsight, after each round.

  .. math::
    R_t = \sum_{s \le t} f_s(x_s) - \min_k \sum_{s \le t} f_s(u_k)

  Args:
    losses: of the decisions, `[T]`.
    comparators: losses of one comparator `[T]`, or of K, `[T, K]`.

  Returns:
    `[T]`.

  Example:
    >>> import jax.numpy as jnp
    >>> print(static_regret(jnp.ones(3), jnp.array([[0.0, 1.0], [2.0, 1.0], [2.0, 0.5]])))
    [1.  0.  0.5]
  """
  return jnp.max(jnp.cumsum(_excess(losses, comparators), axis=0), axis=1)


def dynamic_regret(
  losses: jax.Array, comparators: jax.Array, switches: int | None = None
) -> jax.Array:
  r"""The regret against comparators that change, after each round.

  .. math::
    R_t = \sum_{s \le t} f_s(x_s) - \min_{k_1, \ldots, k_t} \sum_{s \le t} f_s(u_{k_s})

  Against one comparator that moves, this is the sum of the differences.

  Args:
    losses: of the decisions, `[T]`.
    comparators: losses of one comparator `[T]`, or of K, `[T, K]`.
    switches: how often :math:`k` may change, at least 0; None sets no limit.

  Returns:
    `[T]`.

  Example:
    >>> import jax.numpy as jnp
    >>> comparators = jnp.array([[0.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
    >>> print(dynamic_regret(jnp.ones(3), comparators))
    [1. 2. 3.]
    >>> print(dynamic_regret(jnp.ones(3), comparators, switches=1))
    [1. 2. 2.]
  """
  excess = _excess(losses, comparators)
  if switches is None:
    return jnp.cumsum(jnp.max(excess, axis=1))
  check.whole("switches", switches, 0)

  def extend(best, gain):  # best [switches + 1, K]: after so many switches, and now at k
    switched = jnp.max(best, axis=1, keepdims=True)[:-1]
    best = jnp.concatenate([best[:1], jnp.maximum(best[1:], switched)]) + gain[None]
    return best, jnp.max(best)

  start = jnp.zeros((switches + 1, excess.shape[1]), excess.dtype)
  return jax.lax.scan(extend, start, excess)[1]


def adaptive_regret(losses: jax.Array, comparators: jax.Array) -> jax.Array:
  r"""The regret on the worst interval so far, against the best fixed comparator on it.

  .. math::
    R_t = \max_{r \le s \le t} \Bigl( \sum_{i=r}^s f_i(x_i) - \min_k \sum_{i=r}^s f_i(u_k) \Bigr)

  Args:
    losses: of the decisions, `[T]`.
    comparators: losses of one comparator `[T]`, or of K, `[T, K]`.

  Returns:
    `[T]`, never falling.

  References:
    Baseline: Hazan, Seshadhri, "Efficient Learning Algorithms for Changing Environments", 2009

  Example:
    >>> import jax.numpy as jnp
    >>> print(adaptive_regret(jnp.array([1.0, 1.0, 0.0]), jnp.array([2.0, 0.0, 0.5])))
    [-1.  1.  1.]
  """
  excess = _excess(losses, comparators)

  def extend(ending_here, gain):
    ending_here = jnp.maximum(ending_here, 0) + gain
    return ending_here, jnp.max(ending_here)

  worst = jax.lax.scan(extend, jnp.zeros(excess.shape[1], excess.dtype), excess)[1]
  return jax.lax.cummax(worst)


def strongly_adaptive_regret(losses: jax.Array, comparators: jax.Array, length: int) -> jax.Array:
  r"""The regret on the worst interval of one length, against the best fixed comparator on it.

  .. math::
    R(\tau) = \max_s \Bigl( \sum_{i=s+1}^{s+\tau} f_i(x_i)
      - \min_k \sum_{i=s+1}^{s+\tau} f_i(u_k) \Bigr)

  Args:
    losses: of the decisions, `[T]`.
    comparators: losses of one comparator `[T]`, or of K, `[T, K]`.
    length: :math:`\tau`, from 1 to T.

  Returns:
    A scalar.

  References:
    Baseline: Daniely, Gonen, Shalev-Shwartz, "Strongly Adaptive Online Learning", 2015,
      arXiv:1502.07073

  Example:
    >>> import jax.numpy as jnp
    >>> losses, comparators = jnp.array([1.0, 1.0, 0.0]), jnp.array([2.0, 0.0, 0.5])
    >>> print([float(strongly_adaptive_regret(losses, comparators, n)) for n in (1, 2, 3)])
    [1.0, 0.5, -0.5]
  """
  excess = _excess(losses, comparators)
  check.whole("length", length, 1)
  check.between("length", length, 1, len(excess))
  summed = jnp.cumsum(excess, axis=0)
  before = jnp.concatenate([jnp.zeros_like(summed[:1]), summed[:-length]])
  return jnp.max(summed[length - 1 :] - before)


def _excess(losses: jax.Array, comparators: jax.Array) -> jax.Array:
  """By how much each round cost more than each comparator, `[T, K]`."""
  losses, comparators = jnp.asarray(losses), jnp.asarray(comparators)
  if losses.ndim != 1 or comparators.ndim not in (1, 2) or len(comparators) != len(losses):
    raise ValueError(
      "losses must be [T], and comparators [T] or [T, K] of the same T, "
      f"got {losses.shape} and {comparators.shape}"
    )
  return losses[:, None] - comparators.reshape(len(losses), -1)
