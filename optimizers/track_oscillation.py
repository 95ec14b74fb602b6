"""Track oscillation: how many rounded weights jump to and fro between two levels."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxrl import check

from .weights._quantization import mean_of
from .weights._reparameterization import Reparameterization


class TrackOscillationState(NamedTuple):
  """State of `track_oscillation`, with an array for each kernel.

  Attributes:
    codes: the level of each weight, int32.
    direction: the last change's sign, int8, 0 before the first.
    frequency: the running mean of reversals.
    metrics: `oscillating` and `frequency`.
  """

  codes: Any
  direction: Any
  frequency: Any
  metrics: dict[str, jax.Array]


def track_oscillation(
  by: Reparameterization, momentum: float = 0.01, threshold: float = 0.005
) -> optax.GradientTransformationExtraArgs:
  r"""Lets updates pass, and counts the weights that they send back to a level they left.

  With the level :math:`k_t` of a weight after step t, and the sign d of its last change,

  .. math::
    o_t = [\mathrm{sign}(k_t - k_{t-1}) \, d_{t-1} = -1], \qquad
    f_t = \mu \, o_t + (1 - \mu) f_{t-1}

  It stands at the end of what trains the coordinates:
  `reparameterized(adamw(1e-3) | track_oscillation(statsq(bits=2)), statsq(bits=2))`.

  Args:
    by: the coordinates, on levels, such as `statsq(bits=2)` or `lsq(bits=3)`.
    momentum: :math:`\mu`, in [0, 1].
    threshold: frequency f above which a weight counts as oscillating.

  Returns:
    A gradient transformation whose updates are those that came in, and whose `update` needs
    `params`, the coordinates. `metrics["oscillating"]` is the share of weights above the
    threshold, `metrics["frequency"]` the mean of f.

  Raises:
    TypeError: `by` is no Reparameterization.
    ValueError: `by` has no levels, `momentum` is out of range, or `update` was called without
      `params`.

  Cost: no gradient evaluation; 9 bytes a weight, and rounding once more.

  Notes:
    As in the official code of StatsQ, which took it from that of Nagel et al.; there, too, 0.005
    is the frequency above which weights are said to oscillate.

  References:
    [106] Liu, Liu, Cheng, "Oscillation-free Quantization for Low-bit Vision Transformers", 2023,
      arXiv:2302.02210
    Nagel, Fournarakis, Bondarenko, Blankevoort, "Overcoming Oscillations in Quantization-Aware
      Training", 2022, arXiv:2203.11086

  Example:
    >>> import jax.numpy as jnp
    >>> from optimizers.weights.lsq import lsq
    >>> by = lsq(bits=2)
    >>> tracker = track_oscillation(by, momentum=0.5)
    >>> raw = by.init(jnp.array([[0.9, 1.1]]))
    >>> raw = raw._replace(scale=jnp.array(2.0))  # levels 0 and 2, the boundary at 1
    >>> state = tracker.init(raw)
    >>> for sign in (1, -1):
    ...   step = raw._replace(raw=jnp.array([[sign * 0.2, 0.0]]), scale=jnp.array(0.0))
    ...   _, state = tracker.update(step, state, raw)
    ...   raw = raw._replace(raw=raw.raw + step.raw)
    >>> float(state.metrics["oscillating"]), float(state.metrics["frequency"])
    (0.5, 0.25)
  """
  check.record("by", by, Reparameterization)
  if by.codes is None:
    raise ValueError("by must have levels, as statsq() and lsq() have, got one without codes")
  check.between("momentum", momentum, 0, 1)
  codes_of = by.codes

  def init_fn(params):
    codes = codes_of(params)
    nothing = jnp.zeros([], jnp.float32)
    return TrackOscillationState(
      codes,
      jax.tree.map(lambda k: jnp.zeros(k.shape, jnp.int8), codes),
      jax.tree.map(lambda k: jnp.zeros(k.shape, jnp.float32), codes),
      {"oscillating": nothing, "frequency": nothing},
    )

  def update_fn(updates, state, params=None, **extra_args):
    del extra_args
    params = check.params("track_oscillation", params)
    codes = codes_of(optax.apply_updates(params, updates))
    change = jax.tree.map(lambda k, old: jnp.sign(k - old).astype(jnp.int8), codes, state.codes)
    frequency = jax.tree.map(
      lambda f, now, last: (momentum * (now * last == -1) + (1 - momentum) * f).astype(f.dtype),
      state.frequency,
      change,
      state.direction,
    )
    direction = jax.tree.map(
      lambda now, last: jnp.where(now == 0, last, now), change, state.direction
    )
    metrics = {
      "oscillating": mean_of(f > threshold for f in frequency),
      "frequency": mean_of(frequency),
    }
    return updates, TrackOscillationState(codes, direction, frequency, metrics)

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)
