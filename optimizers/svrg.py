"""SVRG: gradients corrected by those at an anchor, where the gradient of all data is known."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxrl import check

from ._sharpness import wide

replaces_gradient = True


class SvrgState(NamedTuple):
  """State of `svrg`.

  Attributes:
    phase: the place within a cycle, which begins with a pass over the data.
    anchor: the parameters when the cycle began.
    gradient: the mean of the gradients at the anchor, complete after the pass.
  """

  phase: jax.Array
  anchor: Any
  gradient: Any


def svrg(
  batches: int, every: int | None = None, *, pause: bool = True
) -> optax.GradientTransformationExtraArgs:
  r"""Takes the noise of a batch out of its gradient, as far as it is that at an anchor.

  A cycle begins with a pass over the K batches of the data. The anchor :math:`\tilde w` is the
  point where the pass begins, and the pass collects

  .. math::
    \mu = \tfrac1K \sum_{B} \nabla L_B(\tilde w).

  In the m steps that follow, with the incoming gradient :math:`g = \nabla L_B(w)`,

  .. math::
    u = g - \nabla L_B(\tilde w) + \mu,

  whose mean over the batches is the gradient of all data, and whose variance vanishes as
  :math:`w` and :math:`\tilde w` approach one minimum: a constant learning rate converges. It
  comes first in a chain: `optax.chain(svrg(18), optax.sgd(0.1))`.

  Args:
    batches: K, batches of a pass over the data, at least 1. With 1, the batch of the step that
      begins a cycle is taken for all data; a loop of one's own may hand in just that.
    every: m, corrected steps between passes, at least 1; 2 K by default.
    pause: whether the updates of a pass are zero, as in the paper. Otherwise they are the
      incoming gradients, so that no step is idle, and the anchor is K steps old when it is used.

  Returns:
    A gradient transformation whose `update` needs `params` and `value_fn`, the loss of this
    step's batch as a function of the parameters.

  Raises:
    ValueError: `batches` or `every` is no positive whole number, or `update` was called
      without `params`.
    TypeError: `update` was called without `value_fn`.

  Cost: one gradient evaluation beyond the incoming one in each step in which the parameters
  are not at the anchor: m - 1 in a cycle of K + m steps, or K + m - 1 without `pause`. 8 bytes
  a parameter.

  Notes:
    :math:`\mu` is exactly the gradient of all data at the anchor if the K batches of a pass
    hold every example once, are of equal weight, and the loss of an example is always the same.
    In `scripts.train` with K the steps of an epoch and m a multiple of K, passes are epochs; they
    leave out the few rows that fill no batch. Dropout and augmentation draw anew in each step,
    alike for both gradients of a step, so that :math:`\mu` is then an estimate.
    Zero updates keep `optax.sgd` without momentum still. Momentum and Adam go on moving in a
    pass: there `pause=False` is meant. :math:`\mu` is exact with all of them, since the anchor's
    gradients are evaluated at the anchor wherever the parameters are.
    The next anchor is the last iterate (option I of Johnson and Zhang).

  References:
    [234] Bottou, Curtis, Nocedal, "Optimization Methods for Large-Scale Machine Learning",
      2016, arXiv:1606.04838 (algorithm 5.1)
    Johnson, Zhang, "Accelerating Stochastic Gradient Descent using Predictive Variance
      Reduction", 2013

  Example:
    >>> import jax, jax.numpy as jnp, optax
    >>> optimizer = optax.chain(svrg(batches=2, every=1), optax.sgd(0.5))
    >>> w = jnp.array(0.0)
    >>> state = optimizer.init(w)
    >>> for target in (1.0, 3.0, 1.0):
    ...   loss = lambda w, target=target: (w - target) ** 2 / 2
    ...   updates, state = optimizer.update(jax.grad(loss)(w), state, w, value_fn=loss)
    ...   w = w + updates
    >>> float(w)  # half way to the mean of all targets, after a batch that knew but one of them
    1.0
  """
  check.whole("batches", batches, 1)
  every = 2 * batches if every is None else every
  check.whole("every", every, 1)

  def init_fn(params):
    anchor = wide(params)
    return SvrgState(jnp.zeros([], jnp.int32), anchor, jax.tree.map(jnp.zeros_like, anchor))

  def update_fn(updates, state, params=None, *, value_fn=None, **extra_args):
    del extra_args
    check.params("svrg", params)
    value_fn = check.value_fn("svrg", value_fn)
    begins, in_pass = state.phase == 0, state.phase < batches
    anchor = jax.tree.map(lambda w, a: jnp.where(begins, w, a), wide(params), state.anchor)
    at_anchor = jax.lax.cond(
      _equal(wide(params), anchor),
      lambda: wide(updates),
      lambda: wide(jax.grad(value_fn)(_cast_as(anchor, params))),
    )

    def collected(mean, g):
      return jnp.where(begins, 0, mean) + jnp.where(in_pass, g / batches, 0)

    def corrected(g, old, mean):
      during = jnp.zeros_like(g) if pause else g
      return jnp.where(in_pass, during, (g - old + mean).astype(g.dtype))

    gradient = jax.tree.map(collected, state.gradient, at_anchor)
    updates = jax.tree.map(corrected, updates, at_anchor, gradient)
    return updates, SvrgState((state.phase + 1) % (batches + every), anchor, gradient)

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _equal(one: Any, other: Any) -> jax.Array:
  same = [jnp.all(a == b) for a, b in zip(*map(jax.tree.leaves, (one, other)), strict=True)]
  return jnp.all(jnp.stack([jnp.asarray(True), *same]))


def _cast_as(tree: Any, like: Any) -> Any:
  return jax.tree.map(lambda x, y: x.astype(y.dtype), tree, like)
