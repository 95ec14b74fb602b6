"""Optimistic AMSGrad: every step is followed by one along a guess of the next gradient."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxrl import check

from ._online import rate_at, towards
from ._sharpness import wide


class OptAmsgradState(NamedTuple):
  """State of `opt_amsgrad`.

  Attributes:
    count: updates so far.
    lagging: where the steps without guesses lead.
    theta: the mean gradient.
    v: the mean squared gradient.
    largest: the largest v so far.
    recent: the last r + 1 gradients, the oldest first, on a new first axis; nothing where the
      guess is the last one.
  """

  count: jax.typing.ArrayLike
  lagging: Any
  theta: Any
  v: Any
  largest: Any
  recent: Any


def opt_amsgrad(
  learning_rate: float | optax.Schedule = 1e-3,
  *,
  b1: float = 0.9,
  b2: float = 0.999,
  eps: float = 1e-8,
  predictor: str = "last",
  r: int = 5,
  reg: float = 1e-3,
  combine: str = "recent",
  normalise: bool = True,
  lookback_momentum: bool = True,
) -> optax.GradientTransformationExtraArgs:
  r"""AMSGrad whose parameters run ahead of its iterates by a guess m of the next gradient.

  The parameters are :math:`w_t`, at which :math:`g_t` was taken. With
  :math:`w_{1/2} = w_1, \theta_0 = 0, v_0 = \hat v_0 = \epsilon`, entry by entry,

  .. math::
    \theta_t &= b_1 \theta_{t-1} + (1 - b_1) g_t, \qquad
    v_t = b_2 v_{t-1} + (1 - b_2) g_t^2, \qquad \hat v_t = \max(\hat v_{t-1}, v_t) \\
    w_{t+1/2} &= w_{t-1/2} - \eta_t \theta_t / \sqrt{\hat v_t} \\
    w_{t+1} &= w_{t+1/2} - \eta_t h_{t+1} / \sqrt{\hat v_t}, \qquad
    h_{t+1} = b_1 \theta_{t-1} + (1 - b_1) m_{t+1}

  The guess is the last gradient, :math:`m_{t+1} = g_t`, or the limit to which the last r + 1
  gradients :math:`y_0, \dots, y_r` seem to converge, by regularised minimal polynomial
  extrapolation: with the differences :math:`U = [y_1 - y_0, \dots, y_r - y_{r-1}]` over all
  parameters,

  .. math::
    \Big( \frac{U^\top U}{\|U^\top U\|_2} + \mathrm{reg}\, I \Big) z = 1, \qquad
    c = z / \textstyle\sum_i z_i, \qquad m_{t+1} = \textstyle\sum_{i=1}^r c_i y_i .

  It is a whole recipe: what follows it in a chain would move the parameters off their path.

  Args:
    learning_rate: :math:`\eta`, at least 0, or a schedule of the step count. The best one of
      AMSGrad is a good first choice.
    b1: decay of the mean gradient, in [0, 1).
    b2: decay of the mean squared gradient, in [0, 1].
    eps: :math:`\epsilon`, the first value of v, above 0; nothing is added to the root.
    predictor: the guess, "last" or "rmpe".
    r: differences that "rmpe" uses, at least 2. Until r + 1 gradients are there, the guess is
      the last one.
    reg: what "rmpe" adds to the diagonal, above 0.
    combine: which gradients "rmpe" combines, the "recent" ones :math:`y_1, \dots, y_r` or the
      "old" ones :math:`y_0, \dots, y_{r-1}`.
    normalise: whether the Gram matrix is divided by its largest eigenvalue.
    lookback_momentum: whether h holds :math:`\theta_{t-1}`, or else :math:`\theta_t`.

  Returns:
    A recipe whose `update` needs `params`.

  Raises:
    ValueError: an argument is out of range, or `update` was called without `params`.

  Cost: no gradient evaluation; 16 bytes a parameter, and `4 * (r + 1)` more with "rmpe", which
    reads its gradients r + 1 times.

  Notes:
    There is no correction of bias, unlike in `optax.amsgrad`. The paper's theorem and algorithm
    print :math:`\theta_{t-1}` in h; `lookback_momentum=False` is a variant of ours. The paper's
    box for the extrapolation sums the older gradients, its text the recent ones, and neither
    divides by the eigenvalue, which makes `reg` free of the gradients' scale, nor says `reg`.

  References:
    [241] Wang, Li, Karimi, Li, "An Optimistic Acceleration of AMSGrad for Nonconvex
      Optimization", 2019, arXiv:1903.01435

  Example:
    >>> import jax.numpy as jnp
    >>> optimizer = opt_amsgrad(0.5, b1=0.0, b2=1.0, eps=1.0)
    >>> w = jnp.array(3.0)
    >>> updates, _ = optimizer.update(jnp.array(2.0), optimizer.init(w), w)
    >>> float(updates)  # -0.5 * 2, and once more by the guess that the next is like it
    -2.0
  """
  check.at_least("learning_rate", learning_rate, 0)
  check.below("b1", b1, 0, 1)
  check.between("b2", b2, 0, 1)
  check.above("eps", eps, 0)
  check.one_of("predictor", predictor, ("last", "rmpe"))
  check.whole("r", r, 2)
  check.above("reg", reg, 0)
  check.one_of("combine", combine, ("old", "recent"))

  def init_fn(params):
    params = wide(params)
    zeros = jax.tree.map(jnp.zeros_like, params)
    first = jax.tree.map(lambda w: jnp.full_like(w, eps), params)
    recent: Any = ()
    if predictor == "rmpe":
      recent = jax.tree.map(lambda w: jnp.zeros((r + 1, *w.shape), w.dtype), params)
    return OptAmsgradState(jnp.zeros([], jnp.int32), params, zeros, first, first, recent)

  def guess(gradient, recent, before):
    if predictor == "last":
      return gradient, recent
    recent = jax.tree.map(lambda y, g: jnp.concatenate([y[1:], g[None]]), recent, gradient)
    c = _coefficients(recent, r, reg, normalise)
    c = jnp.pad(c, (1, 0) if combine == "recent" else (0, 1))
    c = jnp.where(before >= r, c, jnp.arange(r + 1) == r)
    return jax.tree.map(lambda y: jnp.tensordot(c.astype(y.dtype), y, 1), recent), recent

  def update_fn(updates, state, params=None, **extra_args):
    del extra_args
    check.params("opt_amsgrad", params)
    rate = rate_at(learning_rate, state.count)
    gradient = wide(updates)
    m, recent = guess(gradient, state.recent, jnp.asarray(state.count))

    def average(decay, mean, x):
      return jax.tree.map(lambda a, b: (decay * a + (1 - decay) * b).astype(a.dtype), mean, x)

    theta = average(b1, state.theta, gradient)
    v = average(b2, state.v, jax.tree.map(jnp.square, gradient))
    largest = jax.tree.map(jnp.maximum, state.largest, v)
    h = average(b1, state.theta if lookback_momentum else theta, m)

    def step(point, direction):
      return jax.tree.map(
        lambda w, d, s: (w - rate * d / jnp.sqrt(s)).astype(w.dtype), point, direction, largest
      )

    lagging = step(state.lagging, theta)
    updates = towards(step(lagging, h), params)
    count = optax.safe_increment(state.count)
    return updates, OptAmsgradState(count, lagging, theta, v, largest, recent)

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _coefficients(recent: Any, r: int, reg: jax.typing.ArrayLike, normalise: bool) -> jax.Array:
  """c `[r]`, which sums to one, from gradients `[r + 1, ...]`."""
  size = optax.tree.norm(recent, ord=jnp.inf)
  size = jnp.where(size > 0, size, 1)

  def gram_of(y):
    u = jnp.diff(y / size, axis=0).reshape(r, -1)
    return jnp.matmul(u, u.T, precision=jax.lax.Precision.HIGHEST)

  gram = sum(map(gram_of, jax.tree.leaves(recent)), start=jnp.zeros((r, r)))
  values, vectors = jnp.linalg.eigh(gram)
  largest = jnp.where(values[-1] > 0, values[-1], 1)
  # Where the Gram matrix isn't normalised, reg is what the scaling of the gradients leaves of
  # it; the bounds keep that, and eigenvalues that are nothing but rounding, off 0 and infinity.
  ridge = reg * largest if normalise else jnp.clip(reg / size / size, 1e-30, 1e30)
  values = jnp.maximum(values, jnp.finfo(values.dtype).eps * largest) + ridge
  z = vectors @ (jnp.sum(vectors, axis=0) / values)
  return z / jnp.sum(z)
