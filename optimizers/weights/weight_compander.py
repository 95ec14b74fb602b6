"""Weight compander: bounded weights, which a nonlinear function pushes away from zero."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrl import check

from ._reparameterization import Reparameterization

_REACH = 0.95  # of the bound: the inverse is infinite at the bound itself


class Companded(NamedTuple):
  """The coordinates of one kernel: v, of its shape, and log a and log b where they are learned."""

  raw: Any
  log_a: Any = ()
  log_b: Any = ()


def weight_compander(a: float = 1.0, b: float = 0.5, *, learn: bool = False) -> Reparameterization:
  r"""Weights as a bounded, odd function of what is trained, entry by entry.

  .. math::
    w = a \arctan(v / b), \qquad |w| < a \pi / 2, \qquad
    \frac{\partial w}{\partial v} = \frac{a b}{b^2 + v^2}

  Weights near zero move fast (by a slope of :math:`a / b`), and large ones slowly. Train with
  `optimizers.reparameterized.reparameterized`, or wrap a Flax layer in
  `jaxrl.models.Reparameterized`. Weight decay inside of it acts on :math:`v`.

  Args:
    a: above 0; weights stay below :math:`a \pi / 2`.
    b: above 0; where the function bends.
    learn: whether each kernel trains its own :math:`\log a` and :math:`\log b`, from these.

  Returns:
    A Reparameterization, which starts at :math:`v = b \tan(w / a)`. Kernels are the arrays of
    two or more axes.

  Raises:
    ValueError: `a` or `b` is not above 0.

  Cost: elementwise work; 8 bytes for each kernel with `learn`.

  Notes:
    Unsure: the arctangent is written down from memory, since neither code nor the text of the
    method's section was at hand. The abstract states what is kept here: one nonlinear function
    of each weight, which bounds it and pushes it off zero, and whose hyper-parameters can be
    learned. The defaults, a slope of 2 at zero, the logarithms, and one pair for each kernel
    are ours. Under gradient descent weights near zero have the rate times the slope's square,
    four times the rate. Weights that start beyond 95 % of the bound start there.

  References:
    [43] Cakaj, Mehnert, Yang, "Weight Compander: A Simple Weight Reparameterization for
      Regularization", 2023, arXiv:2306.16993

  Example:
    >>> import jax.numpy as jnp
    >>> by = weight_compander(a=1.0, b=1.0)
    >>> raw = by.init({"kernel": jnp.array([[0.0, jnp.pi / 4]])})
    >>> print(raw["kernel"].raw)  # tan
    [[0. 1.]]
    >>> print(f"{by.weights(raw)['kernel'][0, 1] / jnp.pi:.3f}")
    0.250
  """
  check.above("a", a, 0)
  check.above("b", b, 0)

  def companded(kernel):
    if jnp.ndim(kernel) < 2:
      return kernel
    angle = jnp.clip(kernel / a, -_REACH * math.pi / 2, _REACH * math.pi / 2)
    logs = (jnp.full((), math.log(x), kernel.dtype) for x in (a, b)) if learn else ()
    return Companded((b * jnp.tan(angle)).astype(kernel.dtype), *logs)

  def weights(node):
    if not isinstance(node, Companded):
      return node
    height, width = (jnp.exp(node.log_a), jnp.exp(node.log_b)) if learn else (a, b)
    return (height * jnp.arctan(node.raw / width)).astype(node.raw.dtype)

  return Reparameterization(
    init=lambda params: jax.tree.map(companded, params),
    weights=lambda raw: jax.tree.map(
      weights, raw, is_leaf=lambda node: isinstance(node, Companded)
    ),
  )
