"""Halpern's iteration, whose residual tells how far a problem is from having a solution."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from .._sharpness import wide
from ._solver import Solver, same_structure


class HalpernInfeasibilityState(NamedTuple):
  """State of `halpern_infeasibility`.

  Attributes:
    count: of steps.
    params: the iterate.
    start: where it began.
    displacement: the residual of the iterate before the last step, an estimate of v.
    metrics: its norm; infinite before the first step.
  """

  count: jax.typing.ArrayLike
  params: Any
  start: Any
  displacement: Any
  metrics: dict[str, jax.Array]


def halpern_infeasibility(operator: Callable[[Any], Any], *, anchor: bool = True) -> Solver:
  r"""Finds a fixed point of a nonexpansive operator, or a certificate that there is none.

  .. math::
    x_{k+1} = \tfrac{1}{k + 2} \, x_0 + \tfrac{k + 1}{k + 2} \, T x_k

  The residual :math:`x_k - T x_k` converges to the infimal displacement :math:`v`, the shortest
  vector in the closure of the range of :math:`I - T`. It is zero where the problem that T
  stands for is feasible (or nearly), and otherwise certifies that it is not: stop where the
  residual settles, and call the problem feasible if its norm is below a tolerance.

  Args:
    operator: T, from trees to trees of one structure, nonexpansive in the Euclidean norm: a
      projection, a resolvent, Douglas-Rachford or ADMM as a fixed-point iteration.
    anchor: whether to go back towards :math:`x_0`. Without it, this is Picard's iteration
      :math:`x_{k+1} = T x_k`.

  Returns:
    A Solver. The state has the residual as `displacement`, and its norm in `metrics`.

  Raises:
    TypeError: `operator` is no function.

  Cost: one evaluation of T a step; three copies of the iterate.

  Notes:
    The squared distance of the residual from :math:`v` falls as :math:`\log k / k^2`, if
    :math:`v` is attained; Picard's, for an averaged operator, as :math:`1 / k`, and for one that
    is merely nonexpansive (a rotation) it need not fall. The normalised iterates,
    :math:`-2 (x_k - x_0) / k`, and :math:`-(x_k - x_0) / k` of Picard, converge to :math:`v` too,
    as :math:`1 / k`.

  References:
    [172] Park, Ryu, "Accelerated Infeasibility Detection of Constrained Optimization and
      Fixed-Point Iterations", 2023, arXiv:2303.15876

  Example:
    >>> import jax.numpy as jnp
    >>> to_left = lambda x: jnp.minimum(x, 0.0)  # projections on x <= 0 and on x >= 1
    >>> to_right = lambda x: jnp.maximum(x, 1.0)
    >>> douglas_rachford = lambda x: x + to_right(2 * to_left(x) - x) - to_left(x)
    >>> solver = halpern_infeasibility(douglas_rachford)
    >>> state = solver.init(jnp.array(0.5))
    >>> for _ in range(20):
    ...   state = solver.step(state)
    >>> float(state.displacement)  # the gap between the two sets
    -1.0
  """
  if not callable(operator):
    raise TypeError(f"operator must be a function of the parameters, got {operator!r}")

  def init(params):
    x = wide(params)
    unknown = jnp.asarray(jnp.inf, jnp.float32)
    return HalpernInfeasibilityState(
      count=jnp.zeros([], jnp.int32),
      params=x,
      start=x,
      displacement=jax.tree.map(jnp.zeros_like, x),
      metrics={"displacement": unknown},
    )

  def step(state):
    image = same_structure("operator", wide(operator(state.params)), state.params)
    displacement = jax.tree.map(jnp.subtract, state.params, image)
    back = 1 / (jnp.asarray(state.count, jnp.float32) + 2) if anchor else jnp.float32(0)
    params = jax.tree.map(lambda y, x: y + back.astype(y.dtype) * (x - y), image, state.start)
    norm = optax.tree.norm(displacement).astype(jnp.float32)
    return HalpernInfeasibilityState(
      optax.safe_increment(state.count), params, state.start, displacement, {"displacement": norm}
    )

  return Solver(init, step)
