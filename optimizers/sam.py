"""Sharpness-aware minimization: descend by the gradient at the worst point nearby."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxrl import check, oracle, parallel

from ._sharpness import moved, scaled_to, wide

replaces_gradient = True


class SamState(NamedTuple):
  """State of `sam`."""

  count: jax.typing.ArrayLike


def sam(
  rho: float | optax.Schedule = 0.05,
  *,
  eps: float = 1e-12,
  axis_name: str | tuple[str, ...] | None = None,
  sync: str | tuple[str, ...] = (),
  slices: int = 1,
) -> optax.GradientTransformationExtraArgs:
  r"""Replaces the gradient at the parameters by the one at a point uphill from them.

  With the loss :math:`L` of this step's batch and its incoming gradient :math:`g`,

  .. math::
    e = \rho \, g / (\|g\|_2 + \epsilon), \qquad u = \nabla L(w + e),

  the norm taken over the whole tree, in float32. It comes first in a chain; what follows
  (clipping, decay, momentum) sees the parameters `w`, never `w + e`:
  `optax.chain(sam(rho=0.05), optax.adamw(1e-3))`. Under `optax.masked` only the masked-in
  part of the tree is perturbed.

  m-sharpness: each part :math:`L_i` of the loss, one of n, has its own perturbation,

  .. math::
    e_i = \rho \, \nabla L_i(w) / (\|\nabla L_i(w)\|_2 + \epsilon), \qquad
    u = \tfrac{1}{n} \sum_i \nabla L_i(w + e_i).

  The parts are the workers' with `axis_name`, and slices of a batch with `slices`; with both,
  slices of each worker's part. On a mesh `data=4,group=2`,

  - `sam(axis_name=("data", "group"))` makes 8 perturbations, one for each worker;
  - `sam(axis_name=("data", "group"), sync="group")` makes 4, one for each pair of workers;
  - `sam(axis_name=("data", "group"), sync=("data", "group"))` makes one, that of the batch.

  Args:
    rho: radius of the perturbation, at least 0, or a schedule of the step count.
    eps: added to the norm, at least 0.
    axis_name: axes of the workers, whose local gradients come in; the mean of their new
      gradients goes out. `None` where gradients are those of the whole batch.
    sync: those of these axes over which the gradient that makes the perturbation is
      averaged first; none by default.
    slices: number of equal slices of the batch, in order, each with its own perturbation; it
      must divide the batch.

  Returns:
    A gradient transformation whose `update` needs `params` and `value_fn`, the loss of
    this step's batch (the worker's own, with `axis_name`) as a function of the parameters;
    with `slices`, a `jaxrl.oracle.Oracle` of it.

  Raises:
    ValueError: `rho` or `eps` is negative, `slices` is no positive whole number, `sync` is
      not among `axis_name` or goes with `slices`; or `update` was called without `params`,
      without workers along `axis_name`, with a gradient that they share, or with a batch
      that `slices` doesn't divide.
    TypeError: `update` was called without `value_fn`, or without an Oracle for `slices`.

  Cost: one gradient evaluation beyond the incoming one; 4 bytes of state in all; a
  temporary copy of the parameters. Workers send one gradient each (an all-reduce), and one
  more with `sync`. With `slices` every slice takes two evaluations on its rows, one slice
  after the other: two of the batch, in the memory of one slice's; the incoming gradient is
  not among them, and a compiled step leaves it out where nothing else needs it.

  Notes:
    A zero gradient gives a zero perturbation; `optax.contrib.sam` divides by zero there.
    The official run also clips the final gradient at norm 5, which here is
    `optax.clip_by_global_norm(5.0)` behind this element. It perturbs each device by its
    local gradient, as `axis_name` does without `sync`.
    Slices equal as many workers where the loss is a weighted mean over examples. Other
    statistics of the batch (groups' means) are each slice's own, and all slices share one
    dropout key, while workers have theirs. On CPU, XLA runs convolutions inside such a loop
    many times slower than outside (27 times, for 8 slices of 128 and the `cnn` of
    `jaxrl.models`); a network of dense layers loses a tenth.

  References:
    [183] Foret, Kleiner, Mobahi, Neyshabur, "Sharpness-Aware Minimization for Efficiently
      Improving Generalization", 2020, arXiv:2010.01412

  Example:
    >>> import jax, optax
    >>> from optimizers.sam import sam
    >>> loss = lambda w: w**4
    >>> optimizer = optax.chain(sam(rho=0.5), optax.sgd(0.125))
    >>> w = jax.numpy.array(1.0)
    >>> updates, state = optimizer.update(
    ...   jax.grad(loss)(w), optimizer.init(w), w, value_fn=loss)
    >>> float(updates)  # -0.125 * 4 * 1.5**3
    -1.6875
  """
  check.at_least("rho", rho, 0)
  check.at_least("eps", eps, 0)
  check.whole("slices", slices, 1)
  axes, sync = _tuple(axis_name), _tuple(sync)
  if not all(name in axes for name in sync):
    raise ValueError(f"sync must be among axis_name={axis_name!r}, got {sync!r}")
  if sync and slices > 1:
    raise ValueError(f"sync must be () where slices={slices} have their own e, got {sync!r}")

  def init_fn(params):
    del params
    return SamState(count=jnp.zeros([], jnp.int32))

  def update_fn(updates, state, params=None, *, value_fn=None, **extra_args):
    del extra_args
    check.params("sam", params)
    value_fn = check.value_fn("sam", value_fn)
    if axis_name is not None:
      updates = parallel.own_gradient("sam", updates, axis_name)
      params = parallel.vary(params, axis_name)
    radius = rho(state.count) if callable(rho) else rho

    def uphill(gradient):
      perturbation = scaled_to(_mean(gradient, sync), radius, eps)
      return parallel.vary(moved(params, perturbation), axes)

    if slices == 1:
      gradient = jax.grad(value_fn)(uphill(updates))
    else:
      gradient = _mean_over_slices(oracle.need_oracle("sam", value_fn), params, uphill, slices)
    return _mean(gradient, axes), SamState(optax.safe_increment(state.count))

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _tuple(names: str | tuple[str, ...] | None) -> tuple[str, ...]:
  if names is None:
    return ()
  return names if isinstance(names, tuple) else (names,)


def _mean(gradient: Any, axes: tuple[str, ...]) -> Any:
  return jax.lax.pmean(gradient, axes) if axes else gradient


def _mean_over_slices(
  value_fn: oracle.Oracle, params: Any, uphill: Callable[[Any], Any], slices: int
) -> Any:
  """The mean of the slices' gradients, each at its own point; the sum is kept in float32."""

  def add(total, index):
    gradient_at = jax.grad(lambda point: value_fn.of_slice(point, index, slices))
    gradient = gradient_at(uphill(gradient_at(params)))
    return jax.tree.map(lambda t, g: t + g.astype(t.dtype), total, gradient), None

  start = jax.tree.map(jnp.zeros_like, wide(params))
  total, _ = jax.lax.scan(add, start, jnp.arange(slices))
  return jax.tree.map(lambda t, w: (t / slices).astype(w.dtype), total, params)
