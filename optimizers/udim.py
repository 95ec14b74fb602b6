"""Unknown domain inconsistency minimisation: alike gradients on the data and on its worst shift."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from jaxrl import check, oracle, reduce

from ._sharpness import moved, scaled_to, wide

replaces_gradient = True


class UdimState(NamedTuple):
  """State of `udim`: the count of updates, and the last inconsistency, to be logged."""

  count: jax.typing.ArrayLike
  metrics: dict[str, jax.Array]


class _Batch(NamedTuple):
  """What of a batch `udim` uses: labels `[B]` or probabilities `[B, C]`, and a mask `[B]`."""

  inputs: jax.Array
  labels: jax.Array
  weights: jax.Array


def udim(
  rho: float | optax.Schedule = 0.05,
  *,
  rho_x: float | optax.Schedule = 10.0,
  lam: float | optax.Schedule = 1.0,
  official: bool = False,
) -> optax.GradientTransformationExtraArgs:
  r"""SAM's gradient, plus that of how the head's gradients change when the inputs move uphill.

  With the mean cross-entropy :math:`L(w; x)` of the batch, inputs move to where loss and
  sharpness are larger,

  .. math::
    \tilde x = x + \rho_x \frac{\nabla_x \psi}{\|\nabla_x \psi\|_2}, \qquad
    \psi(x) = L(w; x) + \rho \|\nabla_w L(w; x)\|_2,

  each example by its own norm. Let :math:`G_i, \tilde G_i` be the gradients of example i's loss
  with respect to the head, a dense layer from the features h with weights and a bias, on x and
  on :math:`\tilde x`; :math:`\mu` the mean of the :math:`G_i`; and
  :math:`v, \tilde v` the means of :math:`(G_i - \mu)^2` and :math:`(\tilde G_i - \mu)^2`,
  entry by entry, with d entries in all, :math:`d_k` in tensor k. Then

  .. math::
    I(w) = \tfrac{1}{4 d} \|v - \tilde v\|_2^2
      + \sum_k \tfrac{1}{d_k} \mathrm{mean}_i \|\tilde G_i^k\|_2^2, \qquad
    u = \nabla L(w + e) + \lambda \nabla I(w), \qquad e = \rho \, g / \|g\|_2,

  where :math:`\tilde x` and e are constants, and g is the incoming gradient; in the first term
  L is the loss that is minimised, whatever it is. :math:`G_i = (p_i - y_i)(h_i, 1)^\top` needs no
  backward pass.

  Args:
    rho: radius :math:`\rho` in the space of weights, at least 0, or a schedule of the count.
    rho_x: length :math:`\rho_x` of the inputs' step, at least 0, or a schedule. It is in
      units of an example's norm, and depends on the data.
    lam: strength :math:`\lambda`, at least 0, or a schedule; the paper begins with SAM alone.
    official: normalise each entry of :math:`\nabla_x \psi` over the batch, as the official code
      does, instead of each example over its entries.

  Returns:
    A gradient transformation whose `update` needs `params` and, as `value_fn`, an Oracle with
    the batch's `inputs` and `labels` (or probabilities) and a model whose outputs are a
    mapping with `logits [B, C]` and `features [B, F]`. The state's metrics hold
    :math:`I`.

  Raises:
    ValueError: an argument is out of range, or `update` was called without `params`, or the
      batch has no `inputs` or `labels`.
    TypeError: `value_fn` is no such Oracle (none is under micro-batches), or the model shows no
      logits or features.

  Cost: four passes through the model, as one gradient beyond the incoming one, one of a gradient's
    norm with respect to the inputs (twice that), and two of the inconsistency; memory for 2 B
    gradients of the head. 8 bytes of state in all.

  Notes:
    The official code's version for one source domain moves the channels' means and deviations
    (its `advstyle`), and goes on with the inputs of before that move, so that v equals
    :math:`\tilde v` there. Its version for several domains is the one above with `official`. Both
    have a step of 10 on images of 224 x 224, and SAM alone for the first fifth of training.
    With more devices gradients must be global. BatchNorm sees each of the batches by itself.

  References:
    [341] Shin, Bae, Na, Kim, Moon, "Unknown Domain Inconsistency Minimization for Domain
      Generalization", 2024, arXiv:2403.07329

  Example:
    >>> import jax, jax.numpy as jnp
    >>> from jaxrl import oracle
    >>> from objectives.classification.cross_entropy import cross_entropy
    >>> batch = {"inputs": jnp.array([[1.0], [-1.0]]), "labels": jnp.array([0, 1])}
    >>> forward_at = lambda w: lambda x: {"features": x, "logits": x @ w}
    >>> w, objective = jnp.zeros((1, 2)), oracle.lift(cross_entropy)
    >>> value_fn = oracle.objective_oracle(objective, (), forward_at, batch, None, w)
    >>> optimizer = udim(rho_x=0.0)
    >>> _, state = optimizer.update(jax.grad(value_fn)(w), optimizer.init(w), w, value_fn=value_fn)
    >>> print(f"{state.metrics['inconsistency']:.2f}")  # (1/2, -1/2) of weights and of biases
    0.50
  """
  check.at_least("rho", rho, 0)
  check.at_least("rho_x", rho_x, 0)
  check.at_least("lam", lam, 0)

  def init_fn(params):
    del params
    return UdimState(jnp.zeros([], jnp.int32), {"inconsistency": jnp.zeros([], jnp.float32)})

  def update_fn(updates, state, params=None, *, value_fn=None, **extra_args):
    del extra_args
    check.params("udim", params)
    value_fn = oracle.need_oracle("udim", value_fn)
    radius, length, strength = (h(state.count) if callable(h) else h for h in (rho, rho_x, lam))
    batch = _read(value_fn.batch)

    uphill = jax.grad(lambda x: _sharp_loss(value_fn, params, batch._replace(inputs=x), radius))
    step = _normalised(uphill(batch.inputs), per_example=not official)
    shifted = (batch.inputs + length * step).astype(batch.inputs.dtype)
    inconsistency, pull = jax.value_and_grad(
      lambda params: _inconsistency(_head(value_fn, params), batch, shifted)
    )(params)
    flat = jax.grad(value_fn)(moved(params, scaled_to(updates, radius, 0.0)))
    updates = jax.tree.map(lambda f, p: (f + strength * p).astype(f.dtype), flat, wide(pull))
    metrics = {"inconsistency": inconsistency.astype(jnp.float32)}
    return updates, UdimState(optax.safe_increment(state.count), metrics)

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _read(batch: oracle.Batch) -> _Batch:
  inputs = check.array("udim", "inputs", batch.get("inputs"))
  return _Batch(
    inputs,
    check.array("udim", "labels", batch.get("labels")),
    batch.get("mask", jnp.ones(inputs.shape[:1])),
  )


Head = Callable[[jax.Array], tuple[jax.Array, jax.Array]]


def _head(value_fn: oracle.Oracle, params: Any) -> Head:
  """Features `[B, F]` and logits `[B, C]` in float32 (or wider), as a function of the inputs."""

  def shown(inputs):
    outputs = value_fn.outputs(params, inputs)
    if not isinstance(outputs, Mapping) or not {"features", "logits"} <= set(outputs):
      raise TypeError(
        "udim needs a model whose outputs are a mapping with `features` and `logits`, got "
        f"{jax.tree.structure(outputs)}"
      )
    features, logits = wide((outputs["features"], outputs["logits"]))
    chex.assert_rank([features, logits], 2)
    return features, logits

  return shown


def _residuals(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """Gradients of each example's cross-entropy with respect to its logits, `[B, C]`."""
  return jax.nn.softmax(logits) - _probabilities(labels, logits)


def _probabilities(labels: jax.Array, logits: jax.Array) -> jax.Array:
  if jnp.issubdtype(labels.dtype, jnp.integer):
    return jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
  return labels.astype(logits.dtype)


def _sharp_loss(
  value_fn: oracle.Oracle, params: Any, batch: _Batch, radius: jax.typing.ArrayLike
) -> jax.Array:
  """The mean cross-entropy plus `radius` times the norm of its gradient."""

  def loss(params):
    _, logits = _head(value_fn, params)(batch.inputs)
    values = optax.softmax_cross_entropy(logits, _probabilities(batch.labels, logits))
    return reduce.weighted_mean(values, batch.weights)

  value, gradient = jax.value_and_grad(loss)(params)
  return value + radius * _norm(jnp.asarray(optax.tree.norm(wide(gradient), squared=True)))


def _norm(square: jax.Array) -> jax.Array:
  """The square root, with a derivative of 0 at 0."""
  return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)


def _normalised(gradient: jax.Array, *, per_example: bool) -> jax.Array:
  axes = tuple(range(1, gradient.ndim)) if per_example else 0
  gradient = wide(gradient)
  largest = jnp.max(jnp.abs(gradient), axis=axes, keepdims=True)
  direction = reduce.ratio(gradient, largest)  # squares that neither overflow nor vanish
  return reduce.ratio(direction, _norm(jnp.sum(direction**2, axis=axes, keepdims=True)))


def _inconsistency(head: Head, batch: _Batch, shifted: jax.Array) -> jax.Array:
  def mean(rows):  # over the batch's examples, [B, ...] -> [...]
    weights = batch.weights.reshape(-1, *(1 for _ in rows.shape[1:]))
    total = reduce.all_workers(jnp.sum(reduce.weighted(rows, weights), axis=0))
    return reduce.ratio(total, reduce.batch_sum(batch.weights))

  def gradients(inputs):  # of each example, [B, F + 1, C], the bias last
    features, logits = head(inputs)
    with_bias = jnp.pad(features, ((0, 0), (0, 1)), constant_values=1)
    return with_bias[:, :, None] * _residuals(logits, batch.labels)[:, None, :]

  own, other = gradients(batch.inputs), gradients(jax.lax.stop_gradient(shifted))
  center = mean(own)[None]
  spread = mean((own - center) ** 2) - mean((other - center) ** 2)
  squares = mean(other**2)
  return jnp.mean(spread**2) / 4 + jnp.mean(squares[:-1]) + jnp.mean(squares[-1])
