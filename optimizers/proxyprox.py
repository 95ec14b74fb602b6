"""Proximal steps on a cheap proxy of the loss, corrected by the gradient of the loss itself."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxrl import check, oracle

from ._sharpness import moved, wide

replaces_gradient = True


class ProxyproxState(NamedTuple):
  """State of `proxyprox`."""

  count: jax.typing.ArrayLike


def proxyprox(
  learning_rate: float | optax.Schedule,
  inner: optax.GradientTransformation,
  inner_steps: int = 10,
  *,
  slices: int = 4,
) -> optax.GradientTransformationExtraArgs:
  r"""Makes many steps by a proxy's gradients for each gradient of the loss.

  With the loss :math:`f`, its incoming gradient :math:`g`, and the proxy :math:`\hat f`,

  .. math::
    w \leftarrow \arg\min_y \; \hat f(y) + \langle g - \nabla \hat f(w), y \rangle
      + \tfrac{1}{2 \eta} \|y - w\|^2,

  approximately: from :math:`w` on, by `inner_steps` of the optimizer `inner`, whose state
  starts anew. What limits :math:`\eta` is how fast the gradient of the difference
  :math:`f - \hat f` changes, :math:`\eta \le 1 / \delta`, and not how fast that of the loss
  does. It is a whole recipe.

  The proxy is what `update` is handed as `proxy_fn`, a function of the parameters: synthetic
  data, a simulator, public data. Without it, as in `scripts.train`, it is the loss on the first
  of `slices` equal slices of the batch.

  Args:
    learning_rate: :math:`\eta`, above 0, or a schedule of the step count.
    inner: with a learning rate; `optax.sgd(r)` needs :math:`r` below
      :math:`2 / (\hat L + 1 / \eta)`, for a proxy whose gradient changes by at most
      :math:`\hat L`.
    inner_steps: above 0.
    slices: of the batch, above 0; they must divide it.

  Returns:
    A gradient transformation whose `update` needs `params`, and `proxy_fn` or an Oracle with
    `of_slice` as `value_fn`.

  Raises:
    ValueError: an argument is out of range, or `update` was called without `params`, or with
      a batch that `slices` doesn't divide.
    TypeError: `update` was called with neither a `proxy_fn` nor an Oracle.

  Cost: `inner_steps` gradient evaluations of the proxy, and none of the loss beyond the incoming
  one; 4 bytes of state in all; while it runs the state of `inner` and 8 bytes a parameter.

  Notes:
    Where the proxy is not convex, :math:`\eta` must be small enough to make the subproblem
    convex. A proxy that draws must draw alike within one update.
    The number of inner steps is fixed, however far they get; theory wants the gradient of the
    subproblem to be small against :math:`\|y - w\| / \eta`.

  References:
    [334] Woodworth, Mishchenko, Bach, "Two Losses Are Better Than One: Faster Optimization
      Using a Cheaper Proxy", 2023, arXiv:2302.03542

  Example:
    >>> import jax, jax.numpy as jnp, optax
    >>> loss, proxy = lambda w: 50.5 * w**2, lambda w: 50 * w**2
    >>> optimizer = proxyprox(1.0, optax.sgd(0.009), inner_steps=20)
    >>> w = jnp.array(1.0)
    >>> updates, state = optimizer.update(
    ...   jax.grad(loss)(w), optimizer.init(w), w, proxy_fn=proxy)
    >>> print(f"{w + updates:.5f}")  # 1 - 101 / (100 + 1): one gradient of the loss
    0.00000
  """
  check.above("learning_rate", learning_rate, 0)
  check.whole("inner_steps", inner_steps, 1)
  check.whole("slices", slices, 1)
  inner = optax.with_extra_args_support(inner)

  def init_fn(params):
    del params
    return ProxyproxState(jnp.zeros([], jnp.int32))

  def update_fn(updates, state, params=None, *, proxy_fn=None, value_fn=None, **extra_args):
    del extra_args
    check.params("proxyprox", params)
    if proxy_fn is None:
      of_slice = oracle.need_oracle("proxyprox", value_fn).of_slice
      proxy_fn = lambda params: of_slice(params, 0, slices)  # noqa: E731
    rate = learning_rate(state.count) if callable(learning_rate) else learning_rate

    def proxy_gradient(step):
      return wide(jax.grad(proxy_fn)(moved(params, step)))

    def move(step, inner_state, gradient):
      place = jax.tree.map(jnp.add, wide(params), step)
      changes, inner_state = inner.update(gradient, inner_state, place)
      return jax.tree.map(lambda s, u: s + u, step, changes), inner_state

    def again(carry, _):
      step, inner_state = carry
      gradient = jax.tree.map(
        lambda own, c, s: own + c + s / rate, proxy_gradient(step), correction, step
      )
      return move(step, inner_state, gradient), None

    still = jax.tree.map(jnp.zeros_like, wide(params))
    correction = jax.tree.map(jnp.subtract, wide(updates), proxy_gradient(still))
    carry = move(still, inner.init(wide(params)), wide(updates))
    (step, _), _ = jax.lax.scan(again, carry, length=inner_steps - 1)
    updates = jax.tree.map(lambda s, w: s.astype(w.dtype), step, params)
    return updates, ProxyproxState(optax.safe_increment(state.count))

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)
