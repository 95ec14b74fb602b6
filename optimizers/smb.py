"""Stochastic model building: where a step fails, a model of each tensor bends it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxrl import check, reduce

from ._sharpness import moved, wide


class SmbState(NamedTuple):
  """State of `smb`.

  Attributes:
    count: of updates.
    scale: what automatic scheduling has made of the learning rate.
    model_steps: of the current epoch.
    metrics: the learning rate, and whether the last update was a model step.
    failed: the gradient whose step the last batch undid, and whether there is one; nothing
      unless batches are independent.
  """

  count: jax.typing.ArrayLike
  scale: jax.Array
  model_steps: jax.Array
  metrics: dict[str, jax.Array]
  failed: Any


def smb(
  learning_rate: float | optax.Schedule = 1.0,
  eta: float = 0.99,
  c: float = 0.1,
  *,
  independent: bool = False,
  autoschedule: bool = False,
  gamma: float = 0.05,
  beta: float = 0.9,
  max_rate: float = 20.0,
  steps_per_epoch: int = 500,
) -> optax.GradientTransformationExtraArgs:
  r"""Gradient steps that are tried first and, where the loss falls too little, bent.

  The step :math:`s = -\alpha g` is taken if it passes Armijo's test on its own batch,
  :math:`f(w + s) \le f(w) - c \, \alpha \|g\|^2`. Otherwise, with the gradient
  :math:`g'` at the trial and :math:`y = g' - g`, every tensor by itself takes

  .. math::
    \sigma &= \tfrac12 \big( \|s\| (\|y\| + \|g\| / \eta) - y^\top s \big), \quad
    \theta = (y^\top s + 2 \sigma)^2 - \|s\|^2 \|y\|^2, \quad
    c_g = -\|s\|^2 / (2 \sigma) \\
    c_s &= \tfrac{c_g}{\theta} \big( \|y\|^2 s^\top g - (y^\top s + 2 \sigma) \, y^\top g \big),
    \quad c_y = \tfrac{c_g}{\theta}
      \big( \|s\|^2 y^\top g - (y^\top s + 2 \sigma) \, s^\top g \big) \\
    u &= c_g g + c_s s + c_y y,

  which minimises a model made of both gradients, and changes the length of the step and its
  direction. It is a whole recipe.

  Args:
    learning_rate: :math:`\alpha`, at least 0, or a schedule of the step count.
    eta: :math:`\eta`, in (0, 1): the smaller, the shorter are model steps.
    c: of Armijo's test, at least 0; with 0 the loss must merely not rise.
    independent: SMBi, whose models don't see the batch that failed: that batch's update is
      zero, and the next batch always takes a model step, with its own :math:`s` and :math:`y`
      and the gradient that failed as the model's :math:`g`.
    autoschedule: whether to fit the learning rate once in `steps_per_epoch` steps: it is
      multiplied by `beta` if the share of model steps was above `gamma` (half of it with
      `independent`), else divided by `beta` unless that is above `max_rate`.
    gamma: at least 0.
    beta: in (0, 1).
    max_rate: above 0.
    steps_per_epoch: above 0.

  Returns:
    A gradient transformation whose `update` needs `params` and `value_fn`, the loss of this
    step's batch as a function of the parameters; it takes the loss at `params` from `value`
    where it is given.

  Raises:
    ValueError: an argument is out of range, or `update` was called without `params`.
    TypeError: `update` was called without `value_fn`.

  Cost: one forward pass more than the incoming gradient, and its backward pass where a model
  step is taken; 20 bytes of state, and 4 bytes a parameter with `independent`. The tensors of
  a forward pass that its backward pass needs are kept until the test is made.

  Notes:
    A gradient of norm below 1e-8 is not tested, as in the official code. A tensor with a zero
    gradient stays, where that code divides zero by zero; so does one whose gradient at the trial
    is not finite, since model steps shrink to nothing as :math:`\|y\|` grows. A model step is
    not tested in turn.
    The norm of a gradient in :math:`\sigma` is that of the current one in SMBi too, as in the
    official code.

  References:
    [222] Birbil, Martin, Onay, Öztoprak, "Bolstering Stochastic Gradient Descent with Model
      Building", 2021, arXiv:2111.07058

  Example:
    >>> import jax, jax.numpy as jnp
    >>> loss = lambda w: 4 * w**2
    >>> optimizer, w = smb(1.0), jnp.array(1.0)
    >>> updates, state = optimizer.update(
    ...   jax.grad(loss)(w), optimizer.init(w), w, value_fn=loss)
    >>> print(f"{w - 8:.0f} {w + updates:.3f}")  # where the step leads, and the model step
    -7 0.530
  """
  check.at_least("learning_rate", learning_rate, 0)
  check.above("eta", eta, 0)
  check.below("eta", eta, 0, 1)
  check.at_least("c", c, 0)
  check.at_least("gamma", gamma, 0)
  check.above("beta", beta, 0)
  check.below("beta", beta, 0, 1)
  check.above("max_rate", max_rate, 0)
  check.whole("steps_per_epoch", steps_per_epoch, 1)

  def init_fn(params):
    zero = jnp.zeros([], jnp.float32)
    nothing = jax.tree.map(jnp.zeros_like, wide(params)), jnp.zeros([], bool)
    return SmbState(
      count=jnp.zeros([], jnp.int32),
      scale=jnp.ones([], jnp.float32),
      model_steps=jnp.zeros([], jnp.int32),
      metrics={"learning_rate": zero, "model_step": zero},
      failed=nothing if independent else (),
    )

  def update_fn(updates, state, params=None, *, value=None, value_fn=None, **extra_args):
    del extra_args
    check.params("smb", params)
    value_fn = check.value_fn("smb", value_fn)
    rate = state.scale * (learning_rate(state.count) if callable(learning_rate) else learning_rate)
    gradient = wide(updates)
    value = value_fn(params) if value is None else value
    step = jax.tree.map(lambda g: -rate * g, gradient)
    trial, gradient_at_trial = jax.vjp(value_fn, moved(params, step))

    length = optax.tree.norm(gradient)
    enough = (trial <= value - c * rate * length**2) | (length < 1e-8)
    if independent:
      old, waiting = state.failed
      bends, undone = waiting, ~waiting & ~enough
      failed = jax.tree.map(lambda g, o: jnp.where(undone, g, o), gradient, old), undone
    else:
      old, bends, undone, failed = gradient, ~enough, False, ()

    def bent():
      ahead = wide(gradient_at_trial(jnp.ones_like(trial))[0])
      return jax.tree.map(_model_step(eta), old, gradient, step, ahead)

    step = jax.lax.cond(bends, bent, lambda: step)
    updates = jax.tree.map(lambda g, s: jnp.where(undone, 0, s).astype(g.dtype), updates, step)
    count = optax.safe_increment(state.count)
    model_steps = state.model_steps + bends.astype(jnp.int32)
    ends = jnp.asarray(count) % steps_per_epoch == 0
    if autoschedule:
      allowed = gamma / 2 if independent else gamma
      fitted = _fitted(model_steps / steps_per_epoch > allowed, rate, beta, max_rate)
      scale = jnp.where(ends, state.scale * fitted, state.scale)
    else:
      scale = state.scale
    metrics = {"learning_rate": jnp.float32(rate), "model_step": bends.astype(jnp.float32)}
    model_steps = jnp.where(ends, 0, model_steps)
    return updates, SmbState(count, scale.astype(jnp.float32), model_steps, metrics, failed)

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _model_step(eta: jax.typing.ArrayLike) -> Callable[..., jax.Array]:
  """The step of one tensor.

  It is a function of g, the current gradient, s and the gradient at the trial. Its
  products are those of tensors whose largest entry is 1: they cannot overflow.
  """

  def bend(g, current, s, ahead):
    y = ahead - current
    unit = _largest(g, current, y)
    length = _largest(s)
    step = length * _unit_step(eta, [reduce.ratio(x, unit) for x in (g, current, y)], s / length)
    return jnp.where((length > 0) & jnp.isfinite(unit) & jnp.isfinite(length), step, 0)

  return bend


def _unit_step(eta: jax.typing.ArrayLike, vectors: list[jax.Array], s: jax.Array) -> jax.Array:
  g, current, y = vectors
  ys, ss, yy = jnp.vdot(y, s), jnp.vdot(s, s), jnp.vdot(y, y)
  yg, sg, norm = jnp.vdot(y, g), jnp.vdot(s, g), jnp.sqrt(jnp.vdot(current, current))
  sigma = 0.5 * (jnp.sqrt(ss) * (jnp.sqrt(yy) + norm / eta) - ys)
  total = ys + 2 * sigma
  theta = total**2 - ss * yy
  cg = -reduce.ratio(ss, 2 * sigma)
  cs = reduce.ratio(cg * (yy * sg - total * yg), theta)
  cy = reduce.ratio(cg * (ss * yg - total * sg), theta)
  return cg * g + cs * s + cy * y


def _largest(*tensors: jax.Array) -> jax.Array:
  return jnp.max(jnp.stack([jnp.max(jnp.abs(x), initial=0) for x in tensors]))


def _fitted(
  too_many: jax.Array, rate: jax.Array, beta: jax.typing.ArrayLike, max_rate: jax.typing.ArrayLike
) -> jax.Array:
  """What the learning rate is multiplied by at the end of an epoch."""
  longer = jnp.where(rate / beta <= max_rate, 1 / beta, 1.0)
  return jnp.where(too_many, beta, longer)
