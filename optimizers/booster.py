"""Booster: train so that a step on harmful data helps less."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxrl import check, oracle

from ._sharpness import moved, scaled_to, wide

replaces_gradient = True


class BoosterState(NamedTuple):
  """State of `booster`."""

  count: jax.typing.ArrayLike


def booster(
  lam: float | optax.Schedule = 5.0,
  *,
  alpha: float | optax.Schedule = 0.1,
  harmful: int = 1,
  eps: float = 1e-7,
) -> optax.GradientTransformationExtraArgs:
  r"""Replaces the gradient by one that also shrinks what harmful fine-tuning would gain.

  With :math:`h` the loss on the batch's harmful rows and :math:`f` that on its other rows,
  each as if there were no others,

  .. math::
    F(w) = f(w) + \lambda \big(h(w) - h(w - e)\big), \quad
    e = \alpha \, \nabla h(w) / (\|\nabla h(w)\|_2 + \epsilon), \qquad
    u = \nabla f(w) + \lambda \big(\nabla h(w) - \nabla h(w - e)\big),

  the step `e` being a constant for the gradient. Harmful are the rows whose column `group` is
  `harmful`: batches mix both kinds. It comes first in a chain:
  `optax.chain(booster(), optax.adamw(5e-4, weight_decay=0.1))`.

  Args:
    lam: strength :math:`\lambda`, at least 0, or a schedule of the step count.
    alpha: length :math:`\alpha` of the harmful step, at least 0, or a schedule.
    harmful: the group of harmful examples, a whole number.
    eps: added to the norm, at least 0.

  Returns:
    A gradient transformation whose `update` needs `params` and an Oracle with `of_rows` and
    `batch` as `value_fn`.

  Raises:
    ValueError: an argument is out of range, `update` was called without `params`, or the batch
      has no `group`.
    TypeError: `value_fn` is not a `jaxrl.oracle.Oracle` with `of_rows` and `batch`, as under
      micro-batches.

  Cost: three gradient evaluations of the batch, its other rows masked; the incoming one is not
  among them, and a compiled step leaves it out where nothing else needs it. 4 bytes of state in
  all; a temporary copy of the parameters.

  Notes:
    The official code draws batches of 10 from each of two data sets; here one batch holds
    both, each kind with a mean of its own, whatever their numbers. A batch without harmful
    rows gives the gradient of `f`. The norm is over the parameters that this element sees: in
    the paper those of a LoRA adapter. Its variant with perturbed representations (Vaccine) in
    place of the gradient of `f` is not part of this function. The value that a step reports is
    the loss over all rows, harmful ones too.

  References:
    [290] Huang, Hu, Ilhan, Tekin, Liu, "Booster: Tackling Harmful Fine-tuning for Large Language
      Models via Attenuating Harmful Perturbation", 2024, arXiv:2409.01586

  Example:
    >>> import jax.numpy as jnp
    >>> from jaxrl import oracle
    >>> batch = {"inputs": jnp.array([1.0, 2.0]), "group": jnp.array([0, 1])}
    >>> objective = oracle.lift(lambda predictions: predictions)
    >>> forward_at = lambda w: lambda inputs: inputs * w**2
    >>> w, optimizer = jnp.array(1.0), booster(lam=2.0, alpha=0.5, eps=0.0)
    >>> value_fn = oracle.objective_oracle(objective, (), forward_at, batch, None, w)
    >>> gradient, _ = optimizer.update(w, optimizer.init(w), w, value_fn=value_fn)
    >>> float(gradient)  # f = w**2, h = 2 * w**2: 2 + 2 * (4 - 4 * 0.5)
    6.0
  """
  check.at_least("lam", lam, 0)
  check.at_least("alpha", alpha, 0)
  check.at_least("eps", eps, 0)
  check.whole("harmful", harmful, 0)

  def init_fn(params):
    del params
    return BoosterState(count=jnp.zeros([], jnp.int32))

  def update_fn(updates, state, params=None, *, value_fn=None, **extra_args):
    del extra_args
    check.params("booster", params)
    value_fn = oracle.need_oracle("booster", value_fn)
    rows = check.array("booster", "group", value_fn.batch.get("group")) == harmful
    strength = lam(state.count) if callable(lam) else lam
    length = alpha(state.count) if callable(alpha) else alpha
    harm_at = jax.grad(lambda point: value_fn.of_rows(point, rows))
    harm = wide(harm_at(params))
    step = jax.tree.map(jnp.negative, scaled_to(harm, length, eps))
    after = wide(harm_at(moved(params, step)))
    rest = jax.grad(lambda point: value_fn.of_rows(point, ~rows))(params)
    updates = jax.tree.map(
      lambda u, f, h, a: (f.astype(h.dtype) + strength * (h - a)).astype(u.dtype),
      updates,
      rest,
      harm,
      after,
    )
    return updates, BoosterState(optax.safe_increment(state.count))

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)
