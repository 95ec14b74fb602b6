"""Sharpness: how much the loss rises in a ball around the parameters, at worst and on average."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrl import check

from . import _loops, _vectors
from ._vectors import Estimate


def worst_case_sharpness(
  loss: Callable[[Any], jax.Array],
  params: Any,
  key: jax.Array,
  rho: jax.typing.ArrayLike = 0.05,
  *,
  steps: int = 20,
  adaptive: bool = False,
) -> jax.Array:
  r"""The rise of the loss at the worst point of a ball, found by projected gradient ascent.

  .. math::
    \max_{\|u\|_2 \le \rho} L(w + c \odot u) - L(w), \qquad
    u \leftarrow \Pi_\rho \left( u + \eta \,
    \frac{c \odot \nabla L(w + c \odot u)}{\|c \odot \nabla L(w + c \odot u)\|} \right),

  with :math:`c = 1`, or :math:`c = |w|` for adaptive sharpness, which no rescaling of the
  parameters that leaves the function as it is can change. The ascent starts on the sphere,
  in a random direction, so that it leaves a minimum too; a step :math:`\eta`, first
  :math:`\rho`, is halved when the loss no longer rises.

  Args:
    loss: a function of the parameters.
    params: a tree of arrays; bf16 is widened to float32 first.
    key: of the start; the best of several keys is a tighter bound.
    rho: radius, at least 0.
    steps: of ascent, at least 1.
    adaptive: whether each direction is measured in units of its parameter.

  Returns:
    The largest rise that was seen, a lower bound of the true one; at least 0, since the ball
    holds its centre.

  Raises:
    ValueError: `rho` is negative, `steps` is no positive whole number, or `params` is empty.

  Cost: `steps + 1` gradient evaluations and one of the loss; 16 bytes a parameter.

  Notes:
    At a minimum of a quadratic the limit is :math:`\tfrac12 \rho^2 \lambda_{max}`. The
    paper's experiments use the same ball and 20 steps of Auto-PGD, with momentum and a first
    step of twice the radius; for `adaptive` they project by Euclidean distance, here in units of
    the parameters: another path to the same maximum. They average over batches of 128.

  References:
    Baseline: Andriushchenko, Croce, Müller, Hein, Flammarion, "A Modern Look at the
      Relationship between Sharpness and Generalization", 2023, arXiv:2302.07011
    Keskar, Mudigere, Nocedal, Smelyanskiy, Tang, "On Large-Batch Training for Deep Learning:
      Generalization Gap and Sharp Minima", 2016, arXiv:1609.04836

  Example:
    >>> import jax, jax.numpy as jnp
    >>> loss = lambda w: 0.5 * jnp.sum(jnp.array([1.0, 8.0]) * w**2)
    >>> rise = worst_case_sharpness(loss, jnp.zeros(2), jax.random.key(0), rho=0.5)
    >>> print(f"{rise:.4f}")  # 0.5 * 8 * 0.5**2
    1.0000
  """
  check.at_least("rho", rho, 0)
  check.whole("steps", steps, 1)
  params = _vectors.wide(params)

  climb = _climb_of(loss, adaptive)
  rho, centre = jnp.asarray(rho), jax.jit(loss)(params)
  found = _loops.repeat(climb, steps + 1, _start(key, params, centre), params, rho, centre)
  # Without a finite rise anywhere there is no answer.
  return jnp.where(jnp.isneginf(found.rise), jnp.nan, jnp.maximum(found.rise, 0))


def random_sharpness(
  loss: Callable[[Any], jax.Array],
  params: Any,
  key: jax.Array,
  rho: jax.typing.ArrayLike = 0.05,
  *,
  samples: int = 20,
  adaptive: bool = False,
) -> Estimate:
  r"""The mean rise of the loss under Gaussian perturbations of the parameters.

  .. math::
    E \, L(w + \rho \, c \odot z) - L(w), \qquad z \sim \mathcal{N}(0, I),

  with :math:`c = 1`, or :math:`c = |w|` for adaptive sharpness. For small radii this is
  :math:`\tfrac12 \rho^2 \sum_i c_i^2 H_{ii}`.

  Args:
    loss: a function of the parameters.
    params: a tree of arrays; bf16 is widened to float32 first.
    key: of the perturbations.
    rho: deviation of each entry, at least 0.
    samples: perturbations, at least 1.
    adaptive: whether each direction is measured in units of its parameter.

  Returns:
    An Estimate: mean and standard error.

  Raises:
    ValueError: `rho` is negative, `samples` is no positive whole number, or `params` is empty.

  Cost: `samples + 1` evaluations of the loss, no gradient; 8 bytes a parameter.

  References:
    Baseline: Andriushchenko, Croce, Müller, Hein, Flammarion, "A Modern Look at the
      Relationship between Sharpness and Generalization", 2023, arXiv:2302.07011

  Example:
    >>> import jax, jax.numpy as jnp
    >>> loss = lambda w: 3.0 * jnp.sum(w)
    >>> print(random_sharpness(loss, jnp.ones(2), jax.random.key(0), rho=0.0).mean)
    0.0
  """
  check.at_least("rho", rho, 0)
  check.whole("samples", samples, 1)
  params = _vectors.wide(params)

  @jax.jit
  def loss_of_sample(sample_key, params):
    return loss(_perturbed(params, rho, _vectors.normal(sample_key, params), adaptive))

  losses = _loops.each(loss_of_sample, jax.random.split(key, samples), params)
  return _vectors.estimate(losses - jax.jit(loss)(params))


class _Climb(NamedTuple):
  """The highest point so far, in units of the radius, and where to look next."""

  u: Any
  rise: jax.Array
  uphill: Any
  stride: jax.Array


@jax.jit
def _start(key: jax.Array, params: Any, centre: jax.Array) -> _Climb:
  """On the sphere, in a random direction; the first step stays there."""
  u = _vectors.unit(_vectors.normal(key, params))
  nowhere = jnp.full_like(centre, -jnp.inf)
  return _Climb(u, nowhere, jax.tree.map(jnp.zeros_like, u), jnp.ones_like(centre))


def _climb_of(loss: Callable[[Any], jax.Array], adaptive: bool) -> Callable[..., _Climb]:
  """A step of ascent; one that doesn't rise is taken back, and the next ones are half as long."""

  def rise_at(u, params, rho, centre):
    return loss(_perturbed(params, rho, u, adaptive)) - centre

  def climb(_, best, *problem):
    u = _into_ball(_vectors.moved(best.u, best.stride, best.uphill))
    rise, gradient = jax.value_and_grad(rise_at)(u, *problem)
    higher = rise > best.rise
    u, uphill = jax.tree.map(
      lambda new, old: jnp.where(higher, new, old),
      (u, _vectors.unit(gradient)),
      (best.u, best.uphill),
    )
    stride = jnp.where(higher, best.stride, best.stride / 2)
    return _Climb(u, jnp.where(higher, rise, best.rise), uphill, stride)

  return climb


def _perturbed(params: Any, rho: jax.typing.ArrayLike, u: Any, adaptive: bool) -> Any:
  """w + rho * c * u."""
  step = jax.tree.map(lambda w, x: jnp.abs(w) * x, params, u) if adaptive else u
  return _vectors.moved(params, rho, step)


def _into_ball(u: Any) -> Any:
  """The point of the unit ball next to `u`."""
  return _vectors.scaled(1 / jnp.maximum(1, _vectors.norm(u)), u)
