"""Sharpness-aware minimization: descend by the gradient at the worst point nearby."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxrl import check, oracle, parallel

from ._sharpness import EVERYTHING, Mask, Uphill, choose, moved, perturbation, scales_of, wide

replaces_gradient = True


class SamState(NamedTuple):
  """State of `sam`: the count of updates, and the state of its mask."""

  count: jax.typing.ArrayLike
  mask: Any = ()


def sam(
  rho: float | optax.Schedule = 0.05,
  *,
  eps: float = 1e-12,
  adaptive: bool = False,
  eta: float = 0.01,
  adaptive_bias: bool = False,
  normalize: str = "own",
  ascent_steps: int = 1,
  mask: Mask | None = None,
  axis_name: str | tuple[str, ...] | None = None,
  sync: str | tuple[str, ...] = (),
  slices: int = 1,
) -> optax.GradientTransformationExtraArgs:
  r"""Replaces the gradient at the parameters by the one at a point uphill from them.

  With the loss :math:`L` of this step's batch and its incoming gradient :math:`g`,

  .. math::
    e = \rho \, T^2 g / (\|T g\|_2 + \epsilon), \qquad u = \nabla L(w + e),

  the norm taken over the whole tree, in float32. SAM has :math:`T = 1`. ASAM (`adaptive`) has
  :math:`T = |w| + \eta`, entry by entry, and :math:`T = 1` for biases. It comes first in a
  chain; what follows (clipping, decay, momentum) sees the parameters `w`, never `w + e`:
  `optax.chain(sam(rho=0.05), optax.adamw(1e-3))`. Under `optax.masked` only the masked-in
  part of the tree is perturbed, and only its gradient replaced; with a `mask`
  (`norm_layer_mask()`, `fisher_mask()`) all of the gradient is the one at `w + e`.

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
    adaptive: whether to scale the perturbation with the parameters, as ASAM does.
    eta: :math:`\eta` of ASAM, at least 0.
    adaptive_bias: whether biases (leaves with `bias` in their own name) adapt as well.
    normalize: what the perturbation is divided by: its `own` norm, as above; the norm
      `given` to `update` as `gradient_norm`, say that of the gradient of all data (DNSAM); or
      nothing, with `none` (USAM: :math:`e = \rho \, T^2 g`).
    ascent_steps: steps uphill, each of length `rho` and by the gradient at the point reached
      so far; T stays that of `w`.
    mask: chooses the parameters to perturb; all of them by default.
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
    ValueError: `rho`, `eps` or `eta` is negative, `normalize` is none of its choices,
      `ascent_steps` or `slices` is no positive whole number, `sync` is not among `axis_name`
      or goes with `slices`; or `update` was called without `params`, without a
      `gradient_norm` that is needed, without workers along `axis_name`, with a gradient that
      they share, or with a batch that `slices` doesn't divide; or what `mask` chooses does
      not fit the parameters.
    TypeError: `mask` is no Mask; or `update` was called without `value_fn`, or without an
      Oracle for `slices`.

  Cost: one gradient evaluation beyond the incoming one for each of the `ascent_steps`; 4 bytes
  of state in all, and the mask's; a temporary copy of the parameters. Workers send one
  gradient each (an all-reduce), and one more an ascent step with `sync`. With `slices` every
  slice takes one evaluation more than that on its rows, one slice after the other, in the
  memory of one slice's; the incoming gradient is not among them, and a compiled step leaves it
  out where nothing else needs it.

  Notes:
    A zero gradient gives a zero perturbation; `optax.contrib.sam` divides by zero there.
    The official run also clips the final gradient at norm 5, which here is
    `optax.clip_by_global_norm(5.0)` behind this element. It perturbs each device by its
    local gradient, as `axis_name` does without `sync`.
    ASAM's paper has `sam(rho=0.5, adaptive=True)`; its code adapts the parameters that are
    called `weight`, in PyTorch all but biases. Widespread packages write
    :math:`e = \rho \, w^2 g / \|w g\|_2` for all parameters, which is
    `sam(adaptive=True, eta=0, adaptive_bias=True)`.
    For several steps within one radius divide it: `sam(rho=0.05 / 3, ascent_steps=3)`.
    Slices equal as many workers where the loss is a weighted mean over examples. Other
    statistics of the batch (groups' means) are each slice's own, and all slices share one
    dropout key, while workers have theirs. On CPU, XLA runs convolutions inside such a loop
    many times slower than outside (27 times, for 8 slices of 128 and the `cnn` of
    `jaxrl.models`); a network of dense layers loses a tenth.

  References:
    [183] Foret, Kleiner, Mobahi, Neyshabur, "Sharpness-Aware Minimization for Efficiently
      Improving Generalization", 2020, arXiv:2010.01412
    Kwon, Kim, Park, Choi, "ASAM: Adaptive Sharpness-Aware Minimization for Scale-Invariant
      Learning of Deep Neural Networks", 2021, arXiv:2102.11600
    Compagnoni, Biggio, Orvieto, Proske, Kersting, Lucchi, "An SDE for Modeling SAM: Theory
      and Insights", 2023, arXiv:2301.08203 (USAM and DNSAM)

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
  for name, value in (("rho", rho), ("eps", eps), ("eta", eta)):
    check.at_least(name, value, 0)
  check.one_of("normalize", normalize, ("given", "none", "own"))
  check.whole("ascent_steps", ascent_steps, 1)
  check.whole("slices", slices, 1)
  chooser = EVERYTHING if mask is None else mask
  check.record("mask", chooser, Mask)
  axes, sync = _tuple(axis_name), _tuple(sync)
  if not all(name in axes for name in sync):
    raise ValueError(f"sync must be among axis_name={axis_name!r}, got {sync!r}")
  if sync and slices > 1:
    raise ValueError(f"sync must be () where slices={slices} have their own e, got {sync!r}")

  def init_fn(params):
    return SamState(jnp.zeros([], jnp.int32), chooser.init(params))

  def update_fn(updates, state, params=None, *, value_fn=None, gradient_norm=None, **extra_args):
    del extra_args
    check.params("sam", params)
    value_fn = check.value_fn("sam", value_fn)
    if axis_name is not None:
      updates = parallel.own_gradient("sam", updates, axis_name)
      params = parallel.vary(params, axis_name)
    chosen, mask_state = choose(chooser, updates, state.mask, params, axis_name)
    uphill = Uphill(
      radius=rho(state.count) if callable(rho) else rho,
      eps=eps,
      divisor=_divisor(normalize, gradient_norm, eps),
      scales=scales_of(params, eta, adaptive_bias) if adaptive else None,
      chosen=chosen,
      whole_norm=chooser.whole_norm,
    )

    def climb(gradient, gradient_at):
      """The gradient at the end of an ascent that begins by `gradient`."""
      total = jax.tree.map(jnp.zeros_like, wide(params))
      for _ in range(ascent_steps):
        total = jax.tree.map(jnp.add, total, perturbation(_mean(gradient, sync), uphill))
        gradient = gradient_at(parallel.vary(moved(params, total), axes))
      return gradient

    if slices == 1:
      gradient = climb(updates, jax.grad(value_fn))
    else:
      gradient = _mean_over_slices(oracle.need_oracle("sam", value_fn), params, climb, slices)
    return _mean(gradient, axes), SamState(optax.safe_increment(state.count), mask_state)

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _divisor(normalize: str, gradient_norm: Any, eps: float) -> jax.Array | None:
  """What perturbations are divided by, where that is not their own norm."""
  if normalize == "given" and gradient_norm is None:
    raise ValueError("sam(normalize='given') needs a norm: call update(..., gradient_norm=...)")
  if normalize == "given":
    return jnp.asarray(gradient_norm) + eps
  return jnp.ones([]) if normalize == "none" else None


def _tuple(names: str | tuple[str, ...] | None) -> tuple[str, ...]:
  if names is None:
    return ()
  return names if isinstance(names, tuple) else (names,)


def _mean(gradient: Any, axes: tuple[str, ...]) -> Any:
  return jax.lax.pmean(gradient, axes) if axes else gradient


def _mean_over_slices(
  value_fn: oracle.Oracle, params: Any, climb: Callable[[Any, Callable[..., Any]], Any], slices: int
) -> Any:
  """The mean of the slices' gradients, each at its own point; the sum is kept in float32."""

  def add(total, index):
    gradient_at = jax.grad(lambda point: value_fn.of_slice(point, index, slices))
    gradient = climb(gradient_at(params), gradient_at)
    return jax.tree.map(lambda t, g: t + g.astype(t.dtype), total, gradient), None

  start = jax.tree.map(jnp.zeros_like, wide(params))
  total, _ = jax.lax.scan(add, start, jnp.arange(slices))
  return jax.tree.map(lambda t, w: (t / slices).astype(w.dtype), total, params)
