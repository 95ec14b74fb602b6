"""Squared error."""

import chex
import jax
import jax.numpy as jnp


def squared_error(predictions: jax.Array, targets: jax.Array) -> jax.Array:
  r"""The squared Euclidean distance of each prediction from its target.

  .. math::
    \ell_i = \sum_d (f_{id} - y_{id})^2

  Args:
    predictions: :math:`f`, `[B]` or `[B, ...]`.
    targets: :math:`y`, of the same shape.

  Returns:
    Per-example values, `[B]`: the sum over all axes but the first.

  Raises:
    AssertionError: the shapes differ, or there is no axis of examples.

  Cost: one pass over the predictions.

  Notes:
    There is no factor 1/2, and outputs are summed, not averaged. `optax.squared_error`
    gives a value for each entry instead and broadcasts `[B]` against `[B, 1]`.

  References:
    Baseline; values from the definition.

  Example:
    >>> import jax.numpy as jnp
    >>> predictions = jnp.array([[1.0, 2.0], [0.0, 0.0]])
    >>> targets = jnp.array([[1.0, 0.0], [3.0, 4.0]])
    >>> print(squared_error(predictions, targets))
    [ 4. 25.]
  """
  chex.assert_shape(predictions, (None, ...))
  chex.assert_equal_shape([predictions, targets])
  squares = jnp.square(predictions - targets)
  return jnp.sum(squares, axis=range(1, squares.ndim))
