"""[194] Saddle-free Newton leaves saddles that attract Newton and detain gradient descent."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxrl import check
from optimizers.newton_cg import newton_cg
from optimizers.saddle_free_newton import saddle_free_newton
from scripts.evidence._experiment import Arm, Claim, Experiment, Measure

SIZE, UP, STEPS, AWAY = 20, 5, 30, 1e-4
RATES = (0.1, 0.3, 0.5)


def rotation(key: jax.Array) -> jax.Array:
  """A random orthogonal matrix."""
  return jnp.linalg.qr(jax.random.normal(key, (SIZE, SIZE)))[0]


def loss(w: jax.Array, axes: jax.Array) -> jax.Array:
  """A saddle at 0 with minima of -1/4 along each of `UP` rotated axes."""
  x = axes @ w
  return jnp.sum(x[UP:] ** 2) + jnp.sum(x[:UP] ** 4 - x[:UP] ** 2)


def newton(rate: float) -> optax.GradientTransformationExtraArgs:
  """Newton's method by the whole Hessian, whatever its signs."""

  def update(updates, state, params=None, *, value_fn=None, **extra_args):
    del extra_args
    value_fn = check.value_fn("newton", value_fn)
    direction = jnp.linalg.solve(jax.hessian(value_fn)(params), updates)
    return -rate * direction, state

  return optax.GradientTransformationExtraArgs(lambda params: (), update)


def descended(optimizer: Any) -> Measure:
  """The loss along the way from points near the saddle on its descending side."""
  optimizer = optax.with_extra_args_support(optimizer)

  @jax.jit
  def run(seed):
    key, other = jax.random.split(jax.random.key(seed))
    axes = rotation(key)
    x = jax.random.normal(other, (SIZE,))
    start = axes.T @ jnp.where(jnp.arange(SIZE) < UP, AWAY * x, x)

    def value_fn(w):
      return loss(w, axes)

    def step(carry, _):
      w, state = carry
      updates, state = optimizer.update(jax.grad(value_fn)(w), state, w, value_fn=value_fn)
      w = optax.apply_updates(w, updates)
      return (w, state), value_fn(w)

    return jax.lax.scan(step, (start, optimizer.init(start)), length=STEPS)[1]

  def measure(seeds):
    over_time = np.stack([run(seed) for seed in seeds])
    return {"loss": over_time[:, -1], "curve/loss": over_time}

  return measure


def arm(make: Callable[[float], Any], settings: tuple[float, ...] = RATES) -> Arm:
  """A measure for each setting."""
  return {f"{make.__name__}({setting})": descended(make(setting)) for setting in settings}


def saddle_free(learning_rate: float) -> Any:
  """The method."""
  return saddle_free_newton(learning_rate)


def gradient_descent(learning_rate: float) -> Any:
  """Stable below 1, since the parabolas' curvature is 2."""
  return optax.sgd(learning_rate)


def truncated_newton(learning_rate: float) -> Any:
  """Newton's step until negative curvature stops it."""
  return newton_cg(learning_rate)


EXPERIMENT = Experiment(
  methods=("saddle_free_newton",),
  family="second_order",
  setup=(
    "A rotated sum of fifteen parabolas and five double wells in 20 dimensions, from points 1e-4 "
    "beside its saddle on the descending axes and 1 on the others; 30 steps; the minimum is -1.25. "
    "The null is Newton's method: the same steps without the absolute value."
  ),
  arms={
    "method": arm(saddle_free, (0.25, 0.5, 1.0)),
    "gradient descent": arm(gradient_descent),
    "truncated Newton": arm(truncated_newton, (0.25, 0.5, 1.0)),
    "null": arm(newton, (0.25, 0.5, 1.0)),
  },
  claims=(
    Claim(
      "In 30 steps it is deeper than gradient descent by more than 0.5",
      *("loss", "lower", 0.5),
      baseline="gradient descent",
    ),
    Claim(
      "In 30 steps it is deeper than truncated Newton by more than 0.05",
      *("loss", "lower", 0.05),
      baseline="truncated Newton",
    ),
  ),
  tuned_by="loss",
  tuned="lower",
)
