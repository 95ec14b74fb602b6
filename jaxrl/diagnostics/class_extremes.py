"""Extreme eigenvalues of each class's Hessian: saddles of rare classes hide in the mean loss."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrl import check

from . import _lanczos, _loops, _vectors


class ClassExtremes(NamedTuple):
  """Eigenvalues of each class's Hessian, and bounds on their errors.

  Attributes:
    smallest: `[classes, count]`, ascending.
    largest: `[classes, count]`, descending.
    smallest_error: `[classes, count]`.
    largest_error: `[classes, count]`.
  """

  smallest: jax.Array
  largest: jax.Array
  smallest_error: jax.Array
  largest_error: jax.Array


def class_extremes(
  class_loss: Callable[[Any, jax.Array], jax.Array],
  params: Any,
  key: jax.Array,
  num_classes: int,
  *,
  count: int = 1,
  order: int = 40,
) -> ClassExtremes:
  r"""The smallest and largest eigenvalues of the Hessian of the loss of each class.

  .. math::
    H_c = \nabla^2 \frac{1}{n_c} \sum_{i : y_i = c} \ell_i(w)

  On data with a long tail, tail classes end at saddles, with a clearly negative smallest
  eigenvalue, while the Hessian of the mean loss looks convex.

  Args:
    class_loss: `class_loss(params, c)`, the mean loss of the examples of class `c`, an
      integer array of shape `[]`; 0 where there are none.
    params: a tree of arrays; bf16 is widened to float32 first.
    key: of the first vectors.
    num_classes: at least 1.
    count: how many at each end, at least 1 and at most `order` and the number of parameters.
    order: steps of Lanczos' iteration (`hessian_extremes`).

  Returns:
    The ClassExtremes; zeros for a class without examples.

  Raises:
    ValueError: `num_classes`, `count` or `order` is out of range, or `params` is empty.

  Cost: `num_classes * order` Hessian-vector products, each about two gradient evaluations;
  `4 * order` bytes a parameter, one class after the other.

  Notes:
    The official code takes the Hessian of each class's cross-entropy on the training split.

  References:
    [281] Rangwani, Aithal, Mishra, Babu, "Escaping Saddle Points for Effective Generalization
      on Class-Imbalanced Data", 2022, arXiv:2212.13827

  Example:
    >>> import jax, jax.numpy as jnp
    >>> class_loss = lambda w, c: jnp.where(c == 0, 1.0, -2.0) * jnp.sum(w**2)
    >>> found = class_extremes(class_loss, jnp.ones(3), jax.random.key(0), 2)
    >>> print(", ".join(f"{x:.3f}" for x in found.smallest[:, 0]))
    2.000, -4.000
  """
  check.whole("num_classes", num_classes, 1)
  params = _vectors.wide(params)
  _lanczos.check_counts(count, order, params)
  step = _lanczos.step_of(class_loss)

  def of_class(class_and_key, params):
    label, class_key = class_and_key
    return _lanczos.extremes(_lanczos.run(step, order, class_key, params, label), count)[:4]

  classes = jnp.arange(num_classes), jax.random.split(key, num_classes)
  return ClassExtremes(*_loops.each(of_class, classes, params))
