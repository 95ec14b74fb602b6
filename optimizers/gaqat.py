"""GAQAT: sharpness-aware training of rounded weights whose steps heed the task only by turns."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxrl import check

from ._sharpness import moved, scaled_to
from .weights._quantization import mean_of
from .weights.lsq import Stepped

replaces_gradient = True


class GaqatState(NamedTuple):
  """State of `gaqat`, with an array for each kernel's step sizes.

  Attributes:
    count: of updates.
    signs: of the last task gradients.
    flips: how often they changed in this window.
    frozen: whether a part of their gradients is left out in this window.
    metrics: `frozen`, `conflicts` and `disorder`.
  """

  count: jax.typing.ArrayLike
  signs: Any
  flips: Any
  frozen: Any
  metrics: dict[str, jax.Array]


def gaqat(
  rho: float | optax.Schedule = 0.05,
  *,
  window: int = 100,
  threshold: float = 0.3,
  freeze: str = "task",
  eps: float = 1e-12,
) -> optax.GradientTransformationExtraArgs:
  r"""SAM for weights rounded by `lsq`, which leaves a part of some step sizes' gradients out.

  With the latent weights v and step sizes s of `lsq`, and the gradient g at both,

  .. math::
    e = \rho \, g_v / (\|g_v\|_2 + \epsilon), \qquad
    g^{sm} = \nabla L(v + e, s) - g, \qquad
    u = \begin{cases}
      g^{sm} & \text{for frozen } s \\
      g + g^{sm} & \text{else}
    \end{cases}

  Over every window of K updates, each step size has the disorder

  .. math::
    \delta = \frac{1}{K - 1} \#\{t : g_{s,t} \, g_{s,t-1} < 0\},

  and those with :math:`\delta < r` are frozen in the next window: where the task's gradient
  has one direction for long, it drives the step sizes against what flatness wants. It comes
  first among what trains the coordinates:
  `reparameterized(gaqat(rho=0.05) | adam(1e-3), lsq(bits=3))`.

  Args:
    rho: :math:`\rho`, at least 0, or a schedule of the step count.
    window: K, a whole number of at least 2.
    threshold: r, at least 0. Nothing is frozen at 0, and everything after the first window
      above 1.
    freeze: which part frozen step sizes lose, `task` (:math:`g`) or `smooth`
      (:math:`g^{sm}`).
    eps: :math:`\epsilon`, at least 0.

  Returns:
    A gradient transformation whose `update` needs `params`, the coordinates of `lsq`, and
    `value_fn`, the loss as a function of them. Without step sizes it is SAM.

  Raises:
    ValueError: an argument is out of range, or `update` was called without `params`.
    TypeError: `update` was called without `value_fn`.

  Cost: one gradient evaluation beyond the incoming one; 9 bytes a step size; a temporary copy of
    the coordinates. `metrics` has the share of `frozen` step sizes, that of `conflicts`, where
    the two gradients' signs differ, and the mean `disorder` of the last window.

  Notes:
    Unsure: neither code nor the text of the method's section was at hand. Descriptions in public
    state what disorder is, that step sizes below a threshold lose the task's gradient, and that
    they are examined anew after each window. They don't state K and r, whose defaults are ours,
    and not whether the task's gradients are what is measured, as here, or those of smoothness.
    They add this to SAGM; here the sum of both parts is the gradient of SAM. Only the latent
    weights and biases are perturbed. The first window freezes nothing.

  References:
    [309] Jiang, Meng, Tang, Yu, Li, Wang, Zhu, "GAQAT: Gradient-Adaptive Quantization-Aware
      Training for Domain Generalization", 2024, arXiv:2412.05551

  Example:
    >>> import jax, jax.numpy as jnp, optax
    >>> from optimizers.reparameterized import reparameterized
    >>> from optimizers.weights.lsq import lsq
    >>> optimizer = reparameterized(
    ...   optax.chain(gaqat(rho=0.1), optax.sgd(0.1)), lsq(bits=3))
    >>> loss = lambda w: jnp.sum((w - 0.3) ** 2)
    >>> w = jnp.ones((2, 2))
    >>> updates, state = optimizer.update(
    ...   jax.grad(loss)(w), optimizer.init(w), w, value_fn=loss)
    >>> float(state.inner[0].metrics["frozen"])
    0.0
  """
  check.at_least("rho", rho, 0)
  check.whole("window", window, 2)
  check.at_least("threshold", threshold, 0)
  check.one_of("freeze", freeze, ("smooth", "task"))
  check.at_least("eps", eps, 0)

  def init_fn(params):
    scales = _scales(params)
    nothing = jnp.zeros([], jnp.float32)
    return GaqatState(
      count=jnp.zeros([], jnp.int32),
      signs=tuple(jnp.zeros(s.shape, jnp.float32) for s in scales),
      flips=tuple(jnp.zeros(s.shape, jnp.int32) for s in scales),
      frozen=tuple(jnp.zeros(s.shape, bool) for s in scales),
      metrics={"frozen": nothing, "conflicts": nothing, "disorder": nothing},
    )

  def update_fn(updates, state, params=None, *, value_fn=None, **extra_args):
    del extra_args
    check.params("gaqat", params)
    value_fn = check.value_fn("gaqat", value_fn)
    radius = rho(state.count) if callable(rho) else rho
    uphill = scaled_to(_with_scales(updates, map(jnp.zeros_like, _scales(updates))), radius, eps)
    climbed = jax.grad(value_fn)(moved(params, uphill))

    task = _scales(updates)
    smooth = tuple(c - g for c, g in zip(_scales(climbed), task, strict=True))
    kept = smooth if freeze == "task" else task
    parts = zip(state.frozen, kept, _scales(climbed), strict=True)
    out = _with_scales(climbed, (jnp.where(f, k, c) for f, k, c in parts))
    watched = _watched(state, task, window, threshold)
    conflicts = [s * g < 0 for s, g in zip(smooth, task, strict=True)]
    metrics = {
      "frozen": mean_of(state.frozen),
      "conflicts": mean_of(conflicts),
      "disorder": watched.metrics["disorder"],
    }
    return out, watched._replace(metrics=metrics)

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _watched(
  state: GaqatState, task: tuple[jax.Array, ...], window: int, threshold: jax.typing.ArrayLike
) -> GaqatState:
  """The state after one more sign of each task gradient."""
  place = jnp.asarray(state.count) % window
  signs = tuple(jnp.sign(g).astype(jnp.float32) for g in task)
  flips = tuple(
    jnp.where(place == 0, 0, f + (now * last < 0))
    for f, now, last in zip(state.flips, signs, state.signs, strict=True)
  )
  ends = place == window - 1
  disorder = [f / (window - 1) for f in flips]
  frozen = tuple(
    jnp.where(ends, d < threshold, f) for d, f in zip(disorder, state.frozen, strict=True)
  )
  last = jnp.where(ends, mean_of(disorder), state.metrics["disorder"])
  count = optax.safe_increment(state.count)
  return GaqatState(count, signs, flips, frozen, {"disorder": last})


def _is_stepped(node: Any) -> bool:
  return isinstance(node, Stepped)


def _scales(tree: Any) -> tuple[Any, ...]:
  """The step sizes of each kernel, or what stands in their places."""
  nodes = jax.tree.leaves(tree, is_leaf=_is_stepped)
  return tuple(node.scale for node in nodes if _is_stepped(node))


def _with_scales(tree: Any, scales: Any) -> Any:
  """The tree with others in their places."""
  waiting = iter(scales)
  return jax.tree.map(
    lambda node: node._replace(scale=next(waiting)) if _is_stepped(node) else node,
    tree,
    is_leaf=_is_stepped,
  )
