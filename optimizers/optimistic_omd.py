"""Optimistic online mirror descent: step from a lagging point, with a hint of the next gradient."""

import math
import numbers
from typing import Any, NamedTuple

import jax
import jax.flatten_util
import jax.numpy as jnp
import optax

from jaxrl import check

from ._mirror import at, moves, norm, scaled, wide
from .mirror_maps import MirrorMap, euclidean
from .projections import Projection, nearest_in_norm
from .step_sizes import StepSize

_HINTS = ("external", "last", "none")


class OptimisticOmdState(NamedTuple):
  """State of `optimistic_omd`: the secondary point, in the mirror map's coordinates.

  With a `StepSize` also its state and the hint, whose error it waits for.
  """

  count: jax.typing.ArrayLike
  secondary: Any
  steps: Any
  hint: Any


class OptimisticOnsState(NamedTuple):
  """State of `optimistic_ons`: the secondary point, and a triangle R with R^T R = H."""

  count: jax.typing.ArrayLike
  secondary: Any
  factor: jax.Array


class OptimisticEnsembleState(NamedTuple):
  """State of `optimistic_ensemble`: its players, leaves `[bases, ...]`, and what they lost.

  `decisions` are in parameters, `moved` their squared last moves and `expected` the losses that
  the hint had foretold, both `[bases]`; `variation` sums the squares of its errors.
  """

  count: jax.typing.ArrayLike
  secondary: Any
  decisions: Any
  moved: jax.Array
  losses: jax.Array
  expected: jax.Array
  variation: jax.Array


def optimistic_omd(
  learning_rate: float | optax.Schedule | StepSize,
  mirror: MirrorMap | None = None,
  *,
  hint: str = "last",
) -> optax.GradientTransformationExtraArgs:
  r"""Optimistic online mirror descent, by default with the last gradient as the hint.

  The parameters are the decision :math:`x_t`, at which :math:`g_t` was taken. With the
  mirror map's divergence :math:`B_\psi`, :math:`\hat x_1 = x_1` and hints :math:`m_t`,

  .. math::
    \hat x_{t+1} &= \arg\min_x \; \eta_t \langle g_t, x \rangle + B_\psi(x, \hat x_t) \\
    x_{t+1} &= \arg\min_x \; \eta_{t+1} \langle m_{t+1}, x \rangle + B_\psi(x, \hat x_{t+1})

  It is a whole recipe: what follows it in a chain would move the decision off the
  trajectory of the theory.

  Args:
    learning_rate: :math:`\eta`, at least 0, or a schedule of the step count: round t,
      counted from 1, uses its values at counts t - 1 and t. Or a `StepSize`: `sea_convex` or
      `sea_adahedge`; for strongly convex losses, the schedule `sea_strongly_convex`.
    mirror: geometry and domain: `euclidean()` (the default), `entropy()`, `p_norm(...)` or
      `mahalanobis(...)`.
    hint: `last`, :math:`m_{t+1} = g_t`; `none`, :math:`m_{t+1} = 0`, which is mirror descent;
      or `external`, what `update` is given as `hint`, like the gradient.

  Returns:
    A gradient transformation whose `update` needs `params`.

  Raises:
    ValueError: the learning rate is negative, `hint` is none of the three, the start lies
      outside the map's domain, or `update` was called without `params` or `hint`.
    TypeError: `mirror` is not a MirrorMap, `learning_rate` another record than a StepSize.

  Cost: one gradient a round; 4 bytes a parameter, with a `StepSize` 8.

  Notes:
    The hint before the first round is 0. `optax.optimistic_gradient_descent` takes the
    first gradient instead, so that the first updates differ; the Euclidean form with a
    constant step equals it from there on: :math:`x_{t+1} = x_t - 2 \eta g_t + \eta
    g_{t-1}`.
    The theory assumes that no step size grows; the errors of the hints are measured in the
    mirror map's dual norm, as in the paper where the map is Euclidean.

  References:
    [11] Chen, Zhang, Tu, Zhao, Zhang, "Optimistic Online Mirror Descent for Bridging
      Stochastic and Adversarial Online Convex Optimization", 2024, arXiv:2302.04552

  Example:
    >>> import jax.numpy as jnp
    >>> optimizer = optimistic_omd(0.25)
    >>> x = jnp.array(1.0)
    >>> updates, state = optimizer.update(jnp.array(2.0), optimizer.init(x), x)
    >>> float(updates)  # -2 * 0.25 * 2
    -1.0
  """
  check.at_least("learning_rate", learning_rate, 0)
  if issubclass(type(learning_rate), tuple):
    check.record("learning_rate", learning_rate, StepSize)
  mirror = euclidean() if mirror is None else mirror
  check.record("mirror", mirror, MirrorMap)
  check.one_of("hint", hint, _HINTS)

  def rate(count, steps):
    if isinstance(learning_rate, StepSize):
      return learning_rate.rate(steps)
    return at(learning_rate, count)

  def init_fn(params):
    steps, expected = (), ()
    if isinstance(learning_rate, StepSize):
      steps = learning_rate.init()
      expected = jax.tree.map(lambda x: jnp.zeros_like(wide(x)), params)
    return OptimisticOmdState(jnp.zeros([], jnp.int32), mirror.point(params), steps, expected)

  def update_fn(updates, state, params=None, **extra_args):
    check.params("optimistic_omd", params)
    count, steps, gradient = optax.safe_increment(state.count), state.steps, scaled(1, updates)
    secondary = mirror.step(state.secondary, scaled(rate(state.count, steps), gradient))
    expected = _hint("optimistic_omd", hint, gradient, extra_args)
    kept = ()
    if isinstance(learning_rate, StepSize):
      error, kept = mirror.norm(optax.tree.sub(gradient, state.hint)), expected
      steps = learning_rate.update(steps, error)
    decision = mirror.params(mirror.step(secondary, scaled(rate(count, steps), expected)))
    return moves(decision, params), OptimisticOmdState(count, secondary, steps, kept)

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def optimistic_ons(
  learning_rate: float | optax.Schedule = 1.0,
  *,
  diameter: float,
  bound: float,
  alpha: float = math.inf,
  projection: Projection | None = None,
  hint: str = "last",
  max_size: int = 4096,
) -> optax.GradientTransformationExtraArgs:
  r"""Optimistic online Newton steps, for exp-concave expected losses.

  Optimistic mirror descent with :math:`\psi_t(x) = \tfrac12 x^\top H_t x` over all parameters
  together, :math:`\hat x_1 = x_1` and a step of one:

  .. math::
    H_t &= (1 + \tfrac{\beta G^2}{2}) I + \tfrac{\beta}{2} \sum_{s < t} g_s g_s^\top, \qquad
      \beta = \tfrac12 \min\{\tfrac{1}{4 G D}, \alpha\} \\
    \hat x_{t+1} &= \arg\min_{x \in X} \|x - (\hat x_t - H_t^{-1} g_t)\|_{H_t} \\
    x_{t+1} &= \arg\min_{x \in X} \|x - (\hat x_{t+1} - H_{t+1}^{-1} m_{t+1})\|_{H_{t+1}}

  It is a whole recipe: what follows it in a chain would move the decision off the
  trajectory of the theory.

  Args:
    learning_rate: a factor of both steps, at least 0, or a schedule of the step count: round
      t, counted from 1, uses its values at counts t - 1 and t. The paper has 1.
    diameter: :math:`D` of the domain, above 0.
    bound: :math:`G`, above 0, of the norms of the (random) gradients.
    alpha: :math:`\alpha`, above 0, of the exp-concavity; infinite leaves :math:`1 / 4 G D`.
    projection: the domain :math:`X`; None is the whole space. A start outside counts as the
      nearest point inside.
    hint: `last`, `none` or `external`, as in `optimistic_omd`.
    max_size: the largest number of parameters that is accepted, at least 1.

  Returns:
    A gradient transformation whose `update` needs `params`.

  Raises:
    ValueError: an argument is out of range, there are more than `max_size` parameters, or
      `update` was called without `params` or `hint`.
    TypeError: `projection` is not a Projection.

  Cost: one gradient a round; for `d` parameters `4 * d**2` bytes in all and `O(d^2)` a round,
    and two searches where steps leave the domain (`nearest_in_norm`).

  Notes:
    Of :math:`H` the triangular factor is kept and turned by Givens rotations, so that no
    square of a gradient is formed.

  References:
    [11] Chen, Zhang, Tu, Zhao, Zhang, "Optimistic Online Mirror Descent for Bridging
      Stochastic and Adversarial Online Convex Optimization", 2024, arXiv:2302.04552

  Example:
    >>> import jax.numpy as jnp
    >>> optimizer = optimistic_ons(diameter=0.125, bound=1.0)  # beta is 1
    >>> x = jnp.zeros(2)
    >>> updates, state = optimizer.update(jnp.array([3.0, 0.0]), optimizer.init(x), x)
    >>> print(jnp.round(updates, 4))  # -3 / (3 / 2) - 3 / (3 / 2 + 9 / 2)
    [-2.5  0. ]
  """
  check.at_least("learning_rate", learning_rate, 0)
  check.above("diameter", diameter, 0)
  check.above("bound", bound, 0)
  check.above("alpha", alpha, 0)
  if projection is not None:
    check.record("projection", projection, Projection)
  check.one_of("hint", hint, _HINTS)
  check.whole("max_size", max_size, 1)
  beta = jnp.minimum(1 / (4 * bound * diameter), alpha) / 2
  least = jnp.sqrt(1 + beta * bound**2 / 2)

  def inside(point, factor):
    if projection is None or not factor.size:
      return point
    largest = jnp.max(jnp.abs(factor))
    shares = factor / largest

    def product(vector):
      image = jnp.matmul(shares, vector, precision="highest")
      return jnp.matmul(image, shares, precision="highest")

    low, high = (least / largest) ** 2, jnp.sum(shares**2)
    return nearest_in_norm(projection, point, product, low, high)

  def step(point, factor, gradient, rate):
    vector, unravel = jax.flatten_util.ravel_pytree(gradient)
    if not vector.size:
      return point
    half = jax.scipy.linalg.solve_triangular(factor, vector, trans="T")
    direction = unravel(jax.scipy.linalg.solve_triangular(factor, half))
    return inside(optax.tree.sub(point, scaled(rate, direction)), factor)

  def init_fn(params):
    start = jax.tree.map(wide, params)
    vector, _ = jax.flatten_util.ravel_pytree(start)
    if vector.size > max_size:
      raise ValueError(
        f"optimistic_ons keeps a matrix over the parameters, at most max_size={max_size} of "
        f"them, got {vector.size}: optimistic_omd needs none"
      )
    factor = least.astype(vector.dtype) * jnp.eye(vector.size, dtype=vector.dtype)
    return OptimisticOnsState(jnp.zeros([], jnp.int32), inside(start, factor), factor)

  def update_fn(updates, state, params=None, **extra_args):
    check.params("optimistic_ons", params)
    count, gradient = optax.safe_increment(state.count), scaled(1, updates)
    secondary = step(state.secondary, state.factor, gradient, at(learning_rate, state.count))
    vector, _ = jax.flatten_util.ravel_pytree(gradient)
    factor = _turned(state.factor, (jnp.sqrt(beta / 2) * vector).astype(vector.dtype))
    expected = _hint("optimistic_ons", hint, gradient, extra_args)
    decision = step(secondary, factor, expected, at(learning_rate, count))
    return moves(decision, params), OptimisticOnsState(count, secondary, factor)

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def optimistic_ensemble(
  learning_rate: float | optax.Schedule = 1.0,
  *,
  diameter: float,
  bound: float,
  smoothness: float,
  steps: int,
  projection: Projection | None = None,
  bases: int | None = None,
) -> optax.GradientTransformationExtraArgs:
  r"""Optimistic gradient descent at several step sizes at once, for comparators that move.

  N players take the steps of `optimistic_omd`, each with its constant :math:`\eta_i`, all with
  the gradient :math:`g_t` at the decision :math:`x_t = \sum_i p_{t,i} x_{t,i}` and all with the
  last gradient as hint. Optimistic Hedge weighs them, who moves far pays for it:

  .. math::
    \eta_i &= \min\{\tfrac{1}{8 L}, \; 2^{i-1} \tfrac{D}{\sqrt{8 G^2 T}}\}, \quad i = 1..N \\
    \ell_{t,i} &= \langle g_t, x_{t,i} \rangle + 2 L \|x_{t,i} - x_{t-1,i}\|^2, \qquad
      m_{t+1,i} = \langle g_t, x_{t+1,i} \rangle + 2 L \|x_{t+1,i} - x_{t,i}\|^2 \\
    p_{t+1,i} &\propto \exp\Bigl( -\epsilon_{t+1} \bigl(\sum_{s \le t} \ell_{s,i}
      + m_{t+1,i}\bigr) \Bigr), \qquad
      \epsilon_{t+1} = \min\{\tfrac{1}{8 D^2 L},
      (1 + \sum_{s \le t} \|\ell_s - m_s\|_\infty^2)^{-1/2}\}

  It is a whole recipe: what follows it in a chain would move the decision off the
  trajectory of the theory.

  Args:
    learning_rate: a factor of all :math:`\eta_i`, at least 0, or a schedule of the step count:
      round t, counted from 1, uses its values at counts t - 1 and t. The paper has 1.
    diameter: :math:`D` of the domain, above 0.
    bound: :math:`G`, above 0, of the norms of the (random) gradients.
    smoothness: :math:`L` of the expected losses, above 0.
    steps: :math:`T`, the number of rounds, at least 1.
    projection: the domain; None is the whole space. A start outside counts as the nearest
      point inside.
    bases: :math:`N`, at least 1; None takes as many as the largest step size needs,
      :math:`\lceil \tfrac12 \log_2 (G^2 T / 8 L^2 D^2) \rceil + 1`.

  Returns:
    A gradient transformation whose `update` needs `params`.

  Raises:
    ValueError: an argument is out of range, `bases` is None where the constants are not plain
      numbers, or `update` was called without `params`.
    TypeError: `projection` is not a Projection.

  Cost: one gradient a round and 2 N projections; `8 * N` bytes a parameter.

  Notes:
    :math:`\epsilon` is tuned as in the authors' PyNOL, which weighs the players greedily and
    starts the pool at :math:`D / (G \sqrt T)`, one step further than :math:`1 / 8 L`.

  References:
    [11] Chen, Zhang, Tu, Zhao, Zhang, "Optimistic Online Mirror Descent for Bridging
      Stochastic and Adversarial Online Convex Optimization", 2024, arXiv:2302.04552

  Example:
    >>> import jax.numpy as jnp
    >>> optimizer = optimistic_ensemble(diameter=2.0, bound=1.0, smoothness=0.01, steps=50)
    >>> x = jnp.array(1.0)
    >>> state = optimizer.init(x)
    >>> updates, state = optimizer.update(jnp.array(1.0), state, x)
    >>> print([f"{x:.1f}" for x in state.decisions])  # 1 - 2 * eta, which doubles from 0.1 on
    ['0.8', '0.6', '0.2', '-0.6', '-2.2', '-5.4', '-11.8', '-24.0']
  """
  check.at_least("learning_rate", learning_rate, 0)
  check.above("diameter", diameter, 0)
  check.above("bound", bound, 0)
  check.above("smoothness", smoothness, 0)
  check.whole("steps", steps, 1)
  if bases is not None:
    check.whole("bases", bases, 1)
  number = _bases(diameter, bound, smoothness, steps) if bases is None else bases
  smallest = diameter / (bound * (8 * steps) ** 0.5)
  pool = jnp.minimum(1 / (8 * smoothness), smallest * 2.0 ** jnp.arange(number))
  mirror = euclidean(projection)

  def players(points, rate, gradient):
    def step(point, eta):
      return mirror.step(point, scaled(rate * eta, gradient))

    return jax.vmap(step)(points, pool)

  def squared_moves(new, old):
    def of_one(new, old, _):
      return norm(optax.tree.sub(new, old)) ** 2

    return jax.vmap(of_one)(new, old, pool)

  def lost(gradient, decisions, moved):
    def of_one(decision, moved):
      return optax.tree.vdot(gradient, decision) + 2 * smoothness * moved

    return jax.vmap(of_one)(decisions, moved)

  def init_fn(params):
    start = mirror.point(params)
    every = jax.tree.map(lambda x: jnp.broadcast_to(x, (number, *x.shape)), start)
    zeros = jnp.zeros(number)
    count = jnp.zeros([], jnp.int32)
    return OptimisticEnsembleState(count, every, every, zeros, zeros, zeros, jnp.zeros(()))

  def update_fn(updates, state, params=None, **extra_args):
    del extra_args
    check.params("optimistic_ensemble", params)
    count, gradient = optax.safe_increment(state.count), scaled(1, updates)
    secondary = players(state.secondary, at(learning_rate, state.count), gradient)
    decisions = players(secondary, at(learning_rate, count), gradient)
    moved = squared_moves(decisions, state.decisions).astype(state.moved.dtype)

    seen = lost(gradient, state.decisions, state.moved)
    error = optax.tree.norm(seen - state.expected, ord=jnp.inf)
    variation = jnp.hypot(state.variation, error)
    losses, expected = state.losses + seen, lost(gradient, decisions, moved)
    eps = jnp.minimum(1 / (8 * diameter**2 * smoothness), 1 / jnp.hypot(1, variation))
    weights = jax.nn.softmax(-eps * (losses + expected))
    combined = jax.tree.map(
      lambda x: jnp.tensordot(weights.astype(x.dtype), x, axes=1, precision="highest"), decisions
    )
    return moves(combined, params), OptimisticEnsembleState(
      count, secondary, decisions, moved, losses, expected, variation
    )

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _hint(method: str, kind: str, gradient: Any, extra_args: dict[str, Any]) -> Any:
  """What is expected of the next gradient, in float32 or wider."""
  if kind == "last":
    return gradient
  if kind == "none":
    return optax.tree.zeros_like(gradient)
  given = extra_args.get("hint")
  if given is None:
    raise ValueError(f"{method} with hint='external' needs update(..., hint=m), like the gradient")
  return jax.tree.map(lambda g, m: wide(m).astype(g.dtype), gradient, given)


def _turned(factor: jax.Array, vector: jax.Array) -> jax.Array:
  """The triangle of R^T R + v v^T, by Givens rotations of v into R row by row."""
  if not vector.size:
    return factor

  def rotate(k, carry):
    factor, vector = carry
    row = factor[k]
    size = jnp.hypot(row[k], vector[k])
    cosine, sine = row[k] / size, vector[k] / size
    return factor.at[k].set(cosine * row + sine * vector), cosine * vector - sine * row

  return jax.lax.fori_loop(0, len(vector), rotate, (factor, vector))[0]


def _bases(diameter: float, bound: float, smoothness: float, steps: int) -> int:
  """How many step sizes, doubling from one to the next, `optimistic_ensemble` needs."""
  if not all(isinstance(x, numbers.Real) for x in (diameter, bound, smoothness)):
    raise ValueError("bases must be given where diameter, bound or smoothness are no plain numbers")
  ratio = bound**2 * steps / (8 * smoothness**2 * diameter**2)
  return max(0, math.ceil(math.log2(ratio) / 2)) + 1
