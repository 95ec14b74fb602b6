"""INT4 gradients: backward passes in four bits, whose interval suits the large gradients."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxrl import check, reduce

_FEEL = 2.0**-10  # how much of a cotangent's size an interval's gradient has
_CALIBRATION = 1e-3  # the step of the first search, and the weight of its running mean


class Interval(NamedTuple):
  """The parameters of a layer that tell how far its cotangents are clipped.

  Their gradients carry what the backward pass saw, and any mean or sum over workers,
  micro-batches and passes keeps the ratio of the two.

  Attributes:
    gamma: the interval as a fraction of the largest magnitude; 0 where it is still to be found.
      Its gradient is `weight`'s times the signal: by how much more cotangents were clipped than
      is wanted, or the gamma that was found.
    weight: 0. Its gradient is proportional to the largest magnitude.
  """

  gamma: Any
  weight: Any


class CotangentQuantizer(NamedTuple):
  """A layer's quantiser of cotangents, for `jaxrl.models.QuantizedCotangents`.

  Attributes:
    init: `init() -> Interval`, a part of the layer's parameters.
    apply: `apply(outputs, interval, key) -> outputs`, the same, with rounded cotangents.
  """

  init: Callable[[], Interval]
  apply: Callable[[jax.Array, Interval, jax.Array], jax.Array]


class Int4GradientsState(NamedTuple):
  """State of `int4_gradients`: the state of the optimizer inside, and the mean gamma."""

  count: jax.typing.ArrayLike
  inner: Any
  metrics: dict[str, jax.Array]


class _Settings(NamedTuple):
  """What shapes a backward pass."""

  bits: int
  target: float
  calibrated: bool
  stochastic: bool


def quantized_cotangents(
  bits: int = 4, *, alpha: float = 1e-3, init: str = "official", rounding: str = "stochastic"
) -> CotangentQuantizer:
  r"""The identity on a layer's outputs, which rounds what comes back to them to a few bits.

  With the cotangent G of the whole batch, :math:`g = \max |G|` and :math:`c = \gamma g`,

  .. math::
    s = \frac{2 c}{2^b - 2}, \qquad
    Q(G) = s \left\lfloor \frac{\mathrm{clip}(G, -c, c) + c}{s} + U[0, 1) \right\rfloor - c,
    \qquad E[Q(G)] = \mathrm{clip}(G, -c, c)

  The gradients of the layer's weights and of its inputs are then products of :math:`Q(G)`.
  `optimizers.int4_gradients.int4_gradients` moves :math:`\gamma` by the fraction R of entries
  with :math:`|G| > c`, which reaches it as the gradient of an `Interval`.

  Args:
    bits: b, at least 2.
    alpha: :math:`\alpha`, the fraction of the entries that are large gradients, in (0, 1].
    init: `official`, the first backward pass finds gamma: from 1 downwards in steps of 0.001
      until a running mean of R, with weight 0.001, is above its target; or `one`, it is 1.
    rounding: `stochastic` as above, or `nearest`.

  Returns:
    A CotangentQuantizer.

  Raises:
    ValueError: an argument is out of range.

  Cost: a pass over the cotangent and as many random numbers; with `official` up to 1000 more
  passes in the first step. 8 bytes a layer.

  Notes:
    It follows the official code: there are :math:`2^b - 2` steps, so that zero is a level,
    while the target of R has :math:`2^b - 1`. The running mean lags behind, and the first gamma
    comes out smaller than the stationary one. The paper takes :math:`\alpha` from a grid, the
    released script for CIFAR-100 has 0.001. It quantises hidden convolutions alone, not the
    first one nor the last layer; weights and activations get four bits as well, for which there
    is `lsq`. Where workers have gradients of their own, the largest magnitude is that of all
    workers, and a first gamma the mean of theirs; so it is with micro-batches, each with a
    largest magnitude of its own. Padded examples count among the entries. Where the backward
    pass is in bfloat16, it sees gamma rounded to that.

  References:
    [348] Kim, Lee, Jeon, Moon, Ham, "Toward INT4 Fixed-Point Training via Exploring Quantization
      Error for Gradients", 2024, arXiv:2407.12637

  Example:
    >>> import jax, jax.numpy as jnp
    >>> by = quantized_cotangents(bits=4, init="one", rounding="nearest")
    >>> interval = by.init()._replace(gamma=jnp.array(0.7))
    >>> x, key = jnp.zeros(5), jax.random.key(0)
    >>> _, pull_back = jax.vjp(lambda x, i: by.apply(x, i, key), x, interval)
    >>> cotangent, signal = pull_back(jnp.array([1.0, -0.52, 0.3, 0.04, -0.9]))
    >>> print(" ".join(f"{g:.1f}" for g in cotangent))
    0.7 -0.5 0.3 0.0 -0.7
    >>> print(f"{signal.gamma / signal.weight:.5f}")  # R = 2/5, less 0.001 / 15
    0.39993
  """
  check.whole("bits", bits, 2)
  check.between("alpha", alpha, 0, 1)
  check.above("alpha", alpha, 0)
  check.one_of("init", init, ("official", "one"))
  check.one_of("rounding", rounding, ("nearest", "stochastic"))
  target = alpha / (2**bits - 1)
  settings = _Settings(bits, target, init == "official", rounding == "stochastic")

  def start():
    gamma = jnp.zeros([], jnp.float32) if settings.calibrated else jnp.ones([], jnp.float32)
    return Interval(gamma, jnp.zeros([], jnp.float32))

  return CotangentQuantizer(start, functools.partial(_watched, settings))


def int4_gradients(
  inner: optax.GradientTransformation,
  step: float | optax.Schedule = 1e-3,
  *,
  axis_name: str | tuple[str, ...] | None = None,
) -> optax.GradientTransformationExtraArgs:
  r"""Trains a network whose layers round their cotangents, and the intervals in which they do.

  The mean error of the large gradients, the fraction :math:`\alpha` with the largest
  magnitude, is at most

  .. math::
    \frac{\alpha \gamma g}{2^b - 1} + R (1 - \gamma) g, \qquad
    R = \frac{1}{N} \# \{|G| > \gamma g\},

  which is stationary at :math:`R = \alpha / (2^b - 1)`. So, in each layer and step,

  .. math::
    \gamma \leftarrow \mathrm{clip}\left(
      \gamma + \beta \, \mathrm{sign}\left(R - \frac{\alpha}{2^b - 1}\right), 0.001, 1\right).

  Layers get their intervals by `quantized_cotangents`, in Flax by
  `jaxrl.models.QuantizedCotangents`; the optimizer inside sees all other parameters. A step of
  which a layer finds its first gamma does not train.

  Args:
    inner: with a learning rate; trains what is no `Interval`.
    step: :math:`\beta`, at least 0, or a schedule of the step count.
    axis_name: axes of the workers whose local gradients come in, over which the intervals'
      are averaged; what is inside averages its own. `None` where gradients are global.

  Returns:
    A gradient transformation whose `update` needs `params`.

  Raises:
    ValueError: `step` is negative, or `update` was called without `params`.

  Cost: no gradient evaluation; the state of `inner` and 8 bytes. `metrics["gamma"]` is the
  mean over the layers.

  Notes:
    `int4_gradients(inner)` may follow what scales or averages gradients, or evaluates them
    elsewhere (`clip_by_global_norm`, `sam`): an interval's gradient is a thousandth of a
    cotangent's size, and of it only a ratio counts. A layer without a gradient keeps its gamma.
    The official code trains no weights in its first step and sets all gammas in it; here a layer
    that has no gradient yet finds its gamma later.

  References:
    [348] Kim, Lee, Jeon, Moon, Ham, "Toward INT4 Fixed-Point Training via Exploring Quantization
      Error for Gradients", 2024, arXiv:2407.12637

  Example:
    >>> import jax, jax.numpy as jnp, optax
    >>> by, optimizer = quantized_cotangents(init="one"), int4_gradients(optax.sgd(0.1))
    >>> params = {"w": jnp.ones(3), "interval": by.init()}
    >>> loss = lambda p: jnp.sum(by.apply(p["w"], p["interval"], jax.random.key(0)) ** 2)
    >>> updates, _ = optimizer.update(jax.grad(loss)(params), optimizer.init(params), params)
    >>> print(f"{updates['interval'].gamma:.4f}")  # nothing is clipped
    -0.0010
    >>> print(updates["w"] == -0.1 * 2)
    [ True  True  True]
  """
  check.at_least("step", step, 0)
  inner = optax.with_extra_args_support(inner)

  def init_fn(params):
    metrics = {"gamma": _mean_gamma(_intervals(params))}
    return Int4GradientsState(jnp.zeros([], jnp.int32), inner.init(_others(params)), metrics)

  def update_fn(updates, state, params=None, **extra_args):
    check.params("int4_gradients", params)
    if "grad" in extra_args:
      extra_args = {**extra_args, "grad": _others(extra_args["grad"])}
    rest, inner_state = inner.update(_others(updates), state.inner, _others(params), **extra_args)
    beta = step(state.count) if callable(step) else step
    before = _intervals(params)
    signals = _intervals(updates)
    if axis_name is not None:
      signals = jax.lax.pmean(signals, axis_name)
    moves = [_move(i, g, beta) for i, g in zip(before, signals, strict=True)]
    after = [i._replace(gamma=i.gamma + m.gamma) for i, m in zip(before, moves, strict=True)]
    if before:
      begins = (state.count == 0) & jnp.any(jnp.stack([i.gamma == 0 for i in before]))
      rest = jax.tree.map(lambda u: jnp.where(begins, jnp.zeros_like(u), u), rest)
      inner_state = optax.tree.where(begins, state.inner, inner_state)
    metrics = {"gamma": _mean_gamma(after)}
    state = Int4GradientsState(optax.safe_increment(state.count), inner_state, metrics)
    return _with_intervals(rest, updates, moves), state

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _move(interval: Interval, signal: Interval, step: jax.typing.ArrayLike) -> Interval:
  """The update of an interval by the gradient that it got."""
  seen = reduce.ratio(signal.gamma, signal.weight)
  moved = jnp.where(interval.gamma == 0, seen, interval.gamma + step * jnp.sign(seen))
  bounded = jnp.where(signal.weight == 0, interval.gamma, jnp.clip(moved, 1e-3, 1))
  change = (bounded - interval.gamma).astype(signal.gamma.dtype)
  return Interval(change, jnp.zeros_like(signal.weight))


def _mean_gamma(intervals: list[Interval]) -> jax.Array:
  if not intervals:
    return jnp.zeros([], jnp.float32)
  return jnp.mean(jnp.stack([interval.gamma for interval in intervals])).astype(jnp.float32)


def _is_interval(node: Any) -> bool:
  """Whether a node is an interval; a masked one is none."""
  return isinstance(node, Interval) and not isinstance(node.gamma, optax.MaskedNode)


def _intervals(tree: Any) -> list[Interval]:
  return [node for node in jax.tree.leaves(tree, is_leaf=_is_interval) if _is_interval(node)]


def _others(tree: Any) -> Any:
  """The tree with every interval masked."""
  return jax.tree.map(
    lambda node: optax.MaskedNode() if _is_interval(node) else node, tree, is_leaf=_is_interval
  )


def _with_intervals(rest: Any, like: Any, intervals: list[Interval]) -> Any:
  """`rest`, which is masked where `like` has intervals, with others in their places."""
  waiting = iter(intervals)
  return jax.tree.map(
    lambda node, x: next(waiting) if _is_interval(node) else x, like, rest, is_leaf=_is_interval
  )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _watched(settings: _Settings, x: jax.Array, interval: Interval, key: jax.Array) -> jax.Array:
  """`x`, whose cotangents are rounded, and what they were is the interval's."""
  del settings, interval, key
  return x


def _watched_forward(settings, x, interval, key):
  del settings
  return x, (interval, key)


def _watched_backward(settings, kept, cotangent):
  interval, key = kept
  wide = cotangent.astype(jnp.promote_types(cotangent.dtype, jnp.float32))
  magnitudes = jnp.abs(wide)
  largest = reduce.batch_max(magnitudes)
  gamma = interval.gamma.astype(wide.dtype)
  fresh = gamma == 0
  used = jnp.where(fresh, 1, gamma)
  signal = _share(magnitudes > used * largest) - settings.target
  if settings.calibrated:
    signal = jnp.where(fresh, _found(magnitudes, largest, fresh, settings.target), signal)
  weight = _FEEL * largest + interval.weight  # which is 0, and a worker's own where it has one
  rounded = used * largest * _rounded(settings, reduce.ratio(wide, largest) / used, key)
  feels = Interval(weight * signal, weight)
  feels = jax.tree.map(lambda x, own: x.astype(own.dtype), feels, interval)
  return rounded.astype(cotangent.dtype), feels, None


_watched.defvjp(_watched_forward, _watched_backward)


def _share(chosen: jax.Array) -> jax.Array:
  return jnp.sum(chosen, dtype=jnp.float32) / max(chosen.size, 1)


def _rounded(settings: _Settings, x: jax.Array, key: jax.Array) -> jax.Array:
  """`x`, clipped to [-1, 1], on `2^bits - 1` levels."""
  steps = 2**settings.bits - 2
  place = (jnp.clip(x, -1, 1) + 1) * (steps / 2)
  if settings.stochastic:
    whole = jnp.floor(place + jax.random.uniform(key, x.shape, jnp.float32))
  else:
    whole = jnp.round(place)
  return jnp.clip(whole, 0, steps) * (2 / steps) - 1


def _found(
  magnitudes: jax.Array, largest: jax.Array, wanted: jax.Array, target: float
) -> jax.Array:
  """The gamma with which a layer begins; takes no time where none is `wanted`."""

  def goes_on(carry):
    gamma, mean = carry
    return (mean <= target) & (gamma > 0)

  def lower(carry):
    gamma, mean = carry
    clipped = _share(magnitudes > gamma * largest)
    mean = (1 - _CALIBRATION) * mean + _CALIBRATION * clipped
    return gamma + _CALIBRATION * jnp.sign(mean - target), mean

  start = jnp.where(wanted, 1.0, 0.0).astype(magnitudes.dtype)
  nothing = jnp.zeros_like(start)
  return jnp.clip(jax.lax.while_loop(goes_on, lower, (start, nothing))[0], 1e-3, 1)
