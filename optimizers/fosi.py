"""FOSI: Newton steps along a few extreme eigenvectors of the Hessian, any optimizer on the rest."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxrl import check, reduce

from . import _lanczos, _vectors


class FosiState(NamedTuple):
  """State of `fosi`: eigenvectors, leaves `[k + smallest, *leaf]`, with their step sizes."""

  count: jax.typing.ArrayLike
  seed: jax.Array
  basis: Any
  rates: jax.Array
  scale: jax.Array
  velocity: Any
  inner: Any
  metrics: dict[str, jax.Array]


def fosi(
  inner: optax.GradientTransformation,
  k: int = 10,
  smallest: int = 0,
  *,
  alpha: float | optax.Schedule = 0.01,
  every: int = 800,
  warmup: int | None = None,
  momentum: str = "average",
  decay: float = 0.9,
  lr_clip: float = 1.0,
  floor: float = 1e-3,
  order: int | None = None,
) -> optax.GradientTransformationExtraArgs:
  r"""Splits the space in two: the Hessian's extreme eigenvectors for Newton, the rest for `inner`.

  Every T steps, Lanczos' iteration on this step's batch finds the k largest and
  :math:`\ell` smallest eigenvalues :math:`\lambda` of the Hessian with their vectors, the rows
  of :math:`V`. In each step, with the gradient g,

  .. math::
    g_1 = V^\top V g, \qquad
    v \leftarrow \mathrm{momentum}(g_1, v), \qquad
    b = \mathrm{inner}(g - g_1), \\
    u = s \, (I - V^\top V) \, b - \alpha V^\top |\Lambda|^{-1} V v, \qquad
    s = \mathrm{clip}(\lambda_{\max} / \lambda_{k}, 1, c).

  The two parts never meet: `inner` sees a problem that lacks the steepest directions, and may
  be given a learning rate s times as large. Before the first estimate `fosi` is `inner`.

  Args:
    inner: a recipe, such as `adam(1e-3)`.
    k: how many of the largest eigenvalues, at least 0.
    smallest: :math:`\ell`, how many of the smallest, at least 0.
    alpha: :math:`\alpha`, at least 0, or a schedule of the step count: the rate of Newton's part,
      1 for a quadratic without noise.
    every: T, steps from one estimate to the next, at least 1.
    warmup: the step, counted from 1, of the first estimate; T by default.
    momentum: that of the Newton part, to be chosen like that of `inner`: "average"
      (:math:`\beta v + (1 - \beta) g_1`, for Adam), "heavy_ball" (:math:`\beta v + g_1`),
      "nesterov" (:math:`\beta^2 v + (1 + \beta) g_1`) or "none" (:math:`g_1`).
    decay: :math:`\beta`, in [0, 1).
    lr_clip: c, at least 1. Adam's learning rate is not to be scaled; the paper's 3 suits SGD.
    floor: eigenvalues whose magnitude is a smaller part of the largest one's, in [0, 1], leave
      their direction to `inner`, instead of dividing by them.
    order: Lanczos' steps; by default the larger of :math:`4 (k + \ell)` and
      :math:`2 \ln n` for n parameters.

  Returns:
    A recipe whose `update` needs `params` and `value_fn`. The state's metrics hold the largest
    eigenvalue of the last estimate.

  Raises:
    ValueError: an argument is out of range, or `update` was called without `params`.
    TypeError: `update` was called without `value_fn`.

  Cost: `order` Hessian-vector products, each about two gradient evaluations, every T steps: at
  the defaults a tenth of a gradient a step, and besides eight passes over all Lanczos vectors a
  product. In every step five passes over V, which take long where memory is slow.
  `4 * (k + smallest) + 4` bytes a parameter and the state of `inner`; `4 * order` while an
  estimate runs.

  Notes:
    The published code flattens the parameters, and `inner` with them; here both keep their
    structure. It runs Lanczos' iteration in float64 from one fixed vector; here it is in the
    dtype of the parameters, at least float32, with twice repeated reorthogonalisation, from a
    vector drawn by `seed`. Its defaults are k = 5, T = 100, :math:`\alpha` = 0.1; the paper's
    experiments took those above.
    The code has no floor. The momentum is not projected when V changes. Weight decay belongs
    into the loss. On CPU, XLA runs convolutions inside the loop of the estimate many times slower.
    `fosi(sgd(0.1, momentum=0.9), momentum="heavy_ball", lr_clip=3.0)` is the code's
    `fosi_momentum`.

  References:
    [311] Sivan, Gabel, Schuster, "FOSI: Hybrid First and Second Order Optimization", 2023,
      arXiv:2302.08484

  Example:
    >>> import jax, jax.numpy as jnp, optax
    >>> loss = lambda w: 0.5 * jnp.sum(jnp.array([1000.0, 1.0]) * w**2)
    >>> optimizer = fosi(optax.sgd(0.5), k=1, alpha=1.0, every=10, warmup=1, momentum="none")
    >>> w = jnp.array([3.0, 3.0])
    >>> updates, _ = optimizer.update(
    ...   jax.grad(loss)(w), optimizer.init(w), w, value_fn=loss)
    >>> print(", ".join(f"{x:.3f}" for x in w + updates))  # Newton's step, and half a step
    0.000, 1.500
  """
  check.whole("k", k, 0)
  check.whole("smallest", smallest, 0)
  check.at_least("alpha", alpha, 0)
  check.whole("every", every, 1)
  check.whole("warmup", every if warmup is None else warmup, 1)
  check.one_of("momentum", momentum, ("average", "heavy_ball", "nesterov", "none"))
  check.below("decay", decay, 0, 1)
  check.at_least("lr_clip", lr_clip, 1)
  check.between("floor", floor, 0, 1)
  check.whole("order", 1 if order is None else order, 1)
  inner = optax.with_extra_args_support(inner)
  first = every if warmup is None else warmup

  def init_fn(params):
    zeros = jax.tree.map(jnp.zeros_like, _vectors.wide(params))
    rows = min(k + smallest, _vectors.size(params))
    return FosiState(
      count=jnp.zeros([], jnp.int32),
      seed=jnp.zeros([], jnp.int32),
      basis=jax.tree.map(lambda x: jnp.zeros((rows, *x.shape), x.dtype), zeros),
      rates=jnp.zeros(rows, _dtype(zeros)),
      scale=jnp.ones([], _dtype(zeros)),
      velocity=zeros,
      inner=inner.init(params),
      metrics={"largest_eigenvalue": jnp.zeros([], jnp.float32)},
    )

  def estimated(state, params, value_fn):
    steps = max(4 * (k + smallest), math.ceil(2 * math.log(_vectors.size(params))))
    key = jax.random.fold_in(jax.random.key(state.seed), state.count)
    found = _extremes(value_fn, params, key, steps if order is None else order)
    values, basis = _chosen(*found, k, smallest)
    rates, basis = _rates(values, basis, floor)
    top, next_to_rest = jnp.abs(values[-1]), jnp.abs(values[-min(k, values.size)])
    scale = jnp.where(next_to_rest > 0, reduce.ratio(top, next_to_rest), lr_clip)
    return state._replace(
      basis=basis,
      rates=rates,
      scale=jnp.clip(jnp.where(top > 0, scale, 1), 1, lr_clip).astype(rates.dtype),
      metrics={"largest_eigenvalue": values[-1].astype(jnp.float32)},
    )

  def update_fn(updates, state, params=None, *, value_fn=None, **extra_args):
    check.params("fosi", params)
    check.value_fn("fosi", value_fn)
    extras = {**extra_args, "value_fn": value_fn}
    if state.rates.size == 0:
      updates, own = inner.update(updates, state.inner, params, **extras)
      return updates, state._replace(count=optax.safe_increment(state.count), inner=own)

    count = optax.safe_increment(state.count)
    at = _vectors.wide(params)
    since = jnp.asarray(count) - first
    due = (since >= 0) & (since % every == 0)
    state = jax.lax.cond(due, lambda s: estimated(s, at, value_fn), lambda s: s, state)

    gradient = _vectors.wide(updates)
    inside = _lanczos.combined(_lanczos.components(state.basis, gradient), state.basis)
    velocity = _averaged(momentum, decay, inside, state.velocity)
    rest = jax.tree.map(jnp.subtract, gradient, inside)
    based, own = inner.update(_vectors.like(rest, updates), state.inner, params, **extras)
    based = _vectors.wide(based)
    # Both projections in one pass over the basis.
    newton = state.rates * _lanczos.components(state.basis, velocity)
    rate = alpha(state.count) if callable(alpha) else alpha
    back = state.scale * _lanczos.components(state.basis, based) + rate * newton
    step = jax.tree.map(
      lambda b, v: state.scale * b - v, based, _lanczos.combined(back, state.basis)
    )
    state = state._replace(count=count, velocity=velocity, inner=own)
    return _vectors.like(step, params), state

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _dtype(tree: Any) -> Any:
  return jnp.result_type(float, *jax.tree.leaves(tree))


def _extremes(value_fn: Any, params: Any, key: jax.Array, order: int) -> tuple[jax.Array, Any, Any]:
  """Ritz values, their coefficients as columns, and the basis that these are about."""
  draws = _vectors.normal(key, params)
  start, phases = _lanczos.started(draws, draws, min(order, _vectors.size(params)))

  def product(vector):
    return _vectors.hessian_product(value_fn, params, vector)[1]

  step = _lanczos.step_of(product)
  krylov = jax.lax.fori_loop(
    0, start.diagonal.size, lambda j, krylov: step(j, krylov, phases), start
  )
  return (*_lanczos.ritz(krylov), krylov.basis)


def _chosen(
  values: jax.Array, vectors: jax.Array, basis: Any, k: int, smallest: int
) -> tuple[jax.Array, Any]:
  """The smallest eigenvalues, then the largest, each in rising order, and their vectors."""
  count = values.size
  smallest = min(smallest, count - min(k, count))
  places = jnp.asarray([*range(smallest), *range(count - min(k, count), count)])
  return values[places], _lanczos.combined(vectors[:, places].T, basis)


def _rates(values: jax.Array, basis: Any, floor: Any) -> tuple[jax.Array, Any]:
  """The inverse magnitudes; below the floor, or rounding, no rate and no vector."""
  size = jnp.abs(values)
  least = jnp.maximum(floor, values.size * jnp.finfo(values.dtype).eps)
  seen = size > least * jnp.max(size)

  def kept(rows):
    return jnp.where(seen.reshape(-1, *(1,) * (rows.ndim - 1)), rows, 0)

  return reduce.ratio(jnp.where(seen, 1.0, 0.0), size), jax.tree.map(kept, basis)


def _averaged(kind: str, decay: Any, gradient: Any, velocity: Any) -> Any:
  new, old = {
    "average": (1 - decay, decay),
    "heavy_ball": (1, decay),
    "nesterov": (1 + decay, decay**2),
    "none": (1, 0),
  }[kind]
  return jax.tree.map(lambda g, v: (new * g + old * v).astype(v.dtype), gradient, velocity)
