"""OASIS: a diagonal Hessian scales the gradient, and its own change sets the step size."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxrl import check, reduce

from . import _vectors


class OasisState(NamedTuple):
  """State of `oasis`: the diagonal, the last parameters, averaged gradients with momentum."""

  count: jax.typing.ArrayLike
  seed: jax.Array
  diagonal: Any
  previous: Any
  velocity: Any
  growth: jax.Array
  metrics: dict[str, jax.Array]


def oasis(
  learning_rate: float | optax.Schedule = 1e-3,
  *,
  adaptive: bool = True,
  b1: float = 0.0,
  b2: float = 0.999,
  alpha: float = 1e-3,
  samples: int = 1,
  warm_start: int = 100,
) -> optax.GradientTransformationExtraArgs:
  r"""Descends by the inverse of the Hessian's diagonal, at a rate that nobody tunes.

  With the loss :math:`F` of this step's batch and vectors :math:`z` of random signs,

  .. math::
    D_k = \beta_2 D_{k-1} + (1 - \beta_2) \, \overline{z \odot \nabla^2 F(w_k) z}, \qquad
    \hat D_k = \max(|D_k|, \alpha), \qquad
    w_{k+1} = w_k - \eta_k \hat D_k^{-1} \nabla F(w_k),

  entry by entry, the mean over `samples` of them. :math:`D_0` is such a mean over `warm_start`.
  The first step has :math:`\eta_0` and :math:`\theta_0 = \infty`; then, with
  :math:`\|v\|_D^2 = \sum_i D_i v_i^2` and its dual :math:`\sum_i v_i^2 / D_i`,

  .. math::
    \eta_k = \min\left(\sqrt{1 + \theta_{k-1}} \, \eta_{k-1}, \;
      \frac{\|w_k - w_{k-1}\|_{\hat D_k}}
      {2 \|\nabla F(w_k) - \nabla F(w_{k-1})\|^*_{\hat D_k}}\right),
    \qquad \theta_k = \eta_k / \eta_{k-1}.

  Both gradients are those of the same batch.

  Args:
    learning_rate: :math:`\eta_0`, above 0, where it is adaptive, of which little depends on the
      value; else the step size, at least 0, or a schedule of the step count.
    adaptive: whether step sizes follow the rule above.
    b1: decay of an average of the gradients, its start corrected as in Adam, in [0, 1); 0 for
      none.
    b2: :math:`\beta_2`, in [0, 1].
    alpha: :math:`\alpha`, above 0, in the unit of the Hessian: it changes with the loss's scale.
    samples: sign vectors a step, at least 1.
    warm_start: sign vectors of the first step; 0 starts from :math:`D = 0`.

  Returns:
    A recipe whose `update` needs `params` and `value_fn`. The state's metrics hold the step
    size.

  Raises:
    ValueError: an argument is out of range, an adaptive learning rate is a schedule, or `update`
      was called without `params`.
    TypeError: `update` was called without `value_fn`.

  Cost: `samples` Hessian-vector products a step, each about two gradient evaluations
  (`warm_start` in the first), and a gradient evaluation where adaptive; 4 bytes a parameter for
  the diagonal, 4 where adaptive, 4 with momentum.

  Notes:
    Where the parameters or the gradient did not change, the rule is 0 / 0 or unbounded: the step
    size then stays as it was.
    An implementation of the paper's with `adaptive=False` has a learning rate of 0.1, b1 = 0.9
    and `warm_start=0`. The rule's guarantee is that of the whole loss; with mini-batches the
    smallest ratio of the last steps rules, since growth is bounded and shrinking is not.

  References:
    [219] Jahani, Rusakov, Shi, Richtarik, Mahoney, Takac, "Doubly Adaptive Scaled Algorithm for
      Machine Learning Using Second-Order Information", 2021, arXiv:2109.05198

  Example:
    >>> import jax, jax.numpy as jnp
    >>> loss = lambda w: 0.5 * jnp.sum(jnp.array([100.0, 1.0]) * w**2)
    >>> optimizer = oasis(0.1)
    >>> w = jnp.array([1.0, 1.0])
    >>> updates, _ = optimizer.update(
    ...   jax.grad(loss)(w), optimizer.init(w), w, value_fn=loss)
    >>> print(updates)  # a tenth of Newton's step
    [-0.1 -0.1]
  """
  (check.above if adaptive else check.at_least)("learning_rate", learning_rate, 0)
  check.below("b1", b1, 0, 1)
  check.between("b2", b2, 0, 1)
  check.above("alpha", alpha, 0)
  check.whole("samples", samples, 1)
  check.whole("warm_start", warm_start, 0)
  if adaptive and callable(learning_rate):
    raise ValueError("learning_rate must be a number where it is adaptive, got a schedule")
  # Under optax.inject_hyperparams it is an array, which may become another one than 0.
  averaged = not isinstance(b1, int | float) or b1 > 0

  def init_fn(params):
    at = _vectors.wide(params)
    zeros = jax.tree.map(jnp.zeros_like, at)
    count = jnp.zeros([], jnp.int32)
    rate = learning_rate(count) if callable(learning_rate) else learning_rate
    return OasisState(
      count=count,
      seed=jnp.zeros([], jnp.int32),
      diagonal=zeros,
      previous=at if adaptive else (),
      velocity=zeros if averaged else (),
      growth=jnp.asarray(jnp.inf, float),
      metrics={"step_size": jnp.asarray(rate, float)},
    )

  def update_fn(updates, state, params=None, *, value_fn=None, **extra_args):
    del extra_args
    check.params("oasis", params)
    value_fn = check.value_fn("oasis", value_fn)
    at, gradient = _vectors.wide(params), _vectors.wide(updates)
    count = optax.safe_increment(state.count)

    def mean_of(draws):
      key = jax.random.fold_in(jax.random.key(state.seed), state.count)
      return _diagonal(value_fn, at, key, draws)

    def mixed():
      return jax.tree.map(
        lambda d, new: (b2 * d + (1 - b2) * new).astype(d.dtype), state.diagonal, mean_of(samples)
      )

    first = jnp.asarray(state.count) == 0
    warm = lambda: mean_of(warm_start)  # noqa: E731
    diagonal = jax.lax.cond(first, warm, mixed) if warm_start else mixed()
    scales = jax.tree.map(lambda d: jnp.maximum(jnp.abs(d), alpha).astype(d.dtype), diagonal)

    rate = learning_rate(state.count) if callable(learning_rate) else learning_rate
    growth, previous = state.growth, ()
    if adaptive:
      last, previous = state.metrics["step_size"], at
      before = _vectors.wide(jax.grad(value_fn)(state.previous))
      longest = _inverse_smoothness(scales, at, state.previous, gradient, before) / 2
      found = jnp.minimum(jnp.sqrt(1 + growth) * last, longest)
      usable = jnp.isfinite(found) & (found > 0) & ~first
      rate = jnp.where(usable, found, last).astype(last.dtype)
      growth = jnp.where(usable, found / last, growth).astype(growth.dtype)

    velocity = state.velocity
    if averaged:
      velocity = jax.tree.map(
        lambda m, g: (b1 * m + (1 - b1) * g).astype(m.dtype), velocity, gradient
      )
      gradient = _vectors.scaled(1 / (1 - b1 ** jnp.asarray(count, float)), velocity)
    steps = jax.tree.map(
      lambda g, d, w: -(rate * (g / d)).astype(w.dtype), gradient, scales, params
    )
    metrics = {"step_size": jnp.asarray(rate, float)}
    return steps, OasisState(count, state.seed, diagonal, previous, velocity, growth, metrics)

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _diagonal(value_fn: Callable[[Any], jax.Array], params: Any, key: jax.Array, draws: int) -> Any:
  """The mean of z * H z over vectors of random signs."""

  def add(i, total):
    normal = _vectors.normal(jax.random.fold_in(key, i), params)
    signs = jax.tree.map(lambda x, w: jnp.where(x < 0, -1, 1).astype(w.dtype), normal, params)
    product = _vectors.hessian_product(value_fn, params, signs)[1]
    return jax.tree.map(lambda t, z, p: t + z * p, total, signs, product)

  total = add(0, jax.tree.map(jnp.zeros_like, params))
  if draws > 1:
    total = jax.lax.fori_loop(1, draws, add, total)
  return _vectors.scaled(1 / draws, total)


def _inverse_smoothness(
  scales: Any, params: Any, previous: Any, gradient: Any, before: Any
) -> jax.Array:
  """How far the parameters moved for the gradient to move by one, in the norms of `scales`."""
  way = jax.tree.map(lambda d, w, v: jnp.sqrt(d) * (w - v), scales, params, previous)
  turn = jax.tree.map(lambda d, g, h: (g - h) / jnp.sqrt(d), scales, gradient, before)
  return reduce.ratio(_vectors.norm(way), _vectors.norm(turn))
