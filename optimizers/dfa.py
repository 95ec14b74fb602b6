"""Direct feedback alignment: layers learn from the output's error, sent by random matrices."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxrl import check

Layer = Callable[[Any, jax.Array], jax.Array]


def dfa(layers: Sequence[Layer], loss: Callable[..., jax.Array]) -> Callable[..., Any]:
  r"""A stand-in for `jax.value_and_grad` that sends no error backwards through the layers.

  With layers :math:`a_l = f_l(\theta_l, a_{l-1})`, l = 1 ... N, and the error
  :math:`e = \partial L / \partial a_N`, the gradient of each layer is the one that it would
  have if the derivative of the loss by its outputs were

  .. math::
    \delta a_l = e B_l \quad (l < N), \qquad \delta a_N = e,

  with fixed matrices :math:`B_l`. All layers can be updated at once, and none needs the weights
  of another. The true products :math:`B_l = (W_N \cdots W_{l+1})^\top` of a linear network give
  backpropagation.

  Args:
    layers: functions `layer(weights, inputs) -> outputs`, `[B, ...]`. Each ends in front of a
      linear map: its own comes first, then activation, normalisation, dropout.
    loss: `loss(outputs, *targets)`, a scalar.

  Returns:
    `value_and_grad(params, feedback, inputs, *targets) -> (value, gradient)`: `params` and
    `gradient` have an entry for each layer, `feedback` (see `dfa_feedback`) a matrix
    `[outputs, size of a_l]` for each but the last.

  Raises:
    ValueError: there is no layer; or, from what is returned, the matrices are not of the
      number and shapes that the layers need.

  Cost: one forward pass; the backward passes of single layers, which don't wait for each other.

  Notes:
    `e` is the gradient by the outputs of whatever loss is given, also a weighted mean. The
    official code has softmax minus one-hot there, summed over the batch in hidden layers and
    averaged in the last: matrices times the size of the batch do the same. It trains tanh
    networks by SGD with a rate of 5e-4 on batches of 128. A layer narrower than the outputs
    keeps those before it from aligning.

  References:
    [366] Launay, Poli, Krzakala, "Principled Training of Neural Networks with Direct Feedback
      Alignment", 2019, arXiv:1906.04554
    Noekland, "Direct Feedback Alignment Provides Learning in Deep Neural Networks", 2016,
      arXiv:1609.01596

  Example:
    >>> import jax.numpy as jnp
    >>> layer = lambda w, x: w * x
    >>> value_and_grad = dfa([layer, layer], lambda outputs: jnp.sum(outputs))
    >>> params, feedback = [jnp.array(2.0), jnp.array(3.0)], [jnp.array([[0.5]])]
    >>> value, gradient = value_and_grad(params, feedback, jnp.array([[10.0]]))
    >>> [float(g) for g in gradient]  # 0.5 * 10, where backpropagation has 3 * 10; 2 * 10
    [5.0, 20.0]
  """
  network = dfa_network(layers)

  def value(params, feedback, inputs, *targets):
    return loss(network(params, feedback, inputs), *targets)

  return jax.value_and_grad(value)


def dfa_network(layers: Sequence[Layer]) -> Callable[..., jax.Array]:
  r"""A network whose derivatives are those of direct feedback alignment, whatever the loss.

  .. math::
    a_l = f_l(\theta_l, a_{l-1}), \qquad \delta a_l = e B_l \quad (l < N)

  It goes wherever a model goes, such as into a `jaxrl.models.Model` for the train step, the
  matrices being its state.

  Args:
    layers: as in `dfa`.

  Returns:
    `network(params, feedback, inputs) -> outputs`. Its gradient by `feedback` is zero, and so is
    the one by `inputs` unless there is but one layer.

  Raises:
    ValueError: as in `dfa`.

  Cost: as `dfa`.

  References:
    [366] Launay, Poli, Krzakala, "Principled Training of Neural Networks with Direct Feedback
      Alignment", 2019, arXiv:1906.04554

  Example:
    >>> import jax, jax.numpy as jnp
    >>> network = dfa_network([lambda w, x: w * x] * 2)
    >>> feedback = [jnp.array([[0.5]])]
    >>> loss = lambda params: jnp.sum(network(params, feedback, jnp.array([[10.0]])))
    >>> float(jax.grad(loss)([jnp.array(2.0), jnp.array(3.0)])[0])
    5.0
  """
  check.whole("the number of layers", len(layers), 1)

  def network(params, feedback, inputs):
    _check_count(layers, params, feedback)
    x, probes = inputs, []
    for layer, weights, matrix in zip(layers[:-1], params[:-1], feedback, strict=True):
      x = layer(weights, x)
      _check_matrix(matrix, x, len(probes))
      x, probe = _tap(x, matrix)
      probes.append(probe)
    return _emit(_fits(layers[-1](params[-1], x), feedback), probes)

  return network


def dfa_feedback(key: jax.Array, sizes: Sequence[int], num_outputs: int) -> list[jax.Array]:
  r"""Feedback matrices for `dfa`, all of them parts of one.

  .. math::
    B_{ij} \sim N(0, 1), \qquad B_l = B_{:, 1 \ldots d_l} / \sqrt{C d_l}

  Args:
    key: of the draw.
    sizes: :math:`d_l`, the number of entries of an example in each layer's outputs, without
      the last layer's.
    num_outputs: C, that of the last layer.

  Returns:
    A matrix `[C, d_l]` for each of the `sizes`, in float32.

  Raises:
    ValueError: a size or `num_outputs` is no positive whole number.

  Cost: 4 bytes times C times the sum of the sizes.

  Notes:
    This is the paper's feedback normalisation. The official code keeps the largest matrix
    alone and cuts the others from it.

  References:
    [366] Launay, Poli, Krzakala, "Principled Training of Neural Networks with Direct Feedback
      Alignment", 2019, arXiv:1906.04554

  Example:
    >>> import jax
    >>> [matrix.shape for matrix in dfa_feedback(jax.random.key(0), [64, 32], 10)]
    [(10, 64), (10, 32)]
  """
  check.whole("num_outputs", num_outputs, 1)
  for size in sizes:
    check.whole("a size", size, 1)
  whole = jax.random.normal(key, (num_outputs, max(sizes, default=0)))
  return [whole[:, :size] / (num_outputs * size) ** 0.5 for size in sizes]


def dfa_alignment(layers: Sequence[Layer], loss: Callable[..., jax.Array]) -> Callable[..., Any]:
  r"""How far the errors of direct feedback alignment point where backpropagation's do.

  .. math::
    \cos \angle_{l,i} = \frac{\langle e_i B_l, \partial L / \partial a_{l,i} \rangle}
    {\|e_i B_l\| \, \|\partial L / \partial a_{l,i}\|}

  Layers learn while the angles stay below 90 degrees: the cosine is positive.

  Args:
    layers: as in `dfa`.
    loss: as in `dfa`.

  Returns:
    `alignment(params, feedback, inputs, *targets)`, the cosines `[N - 1, B]` of each hidden
    layer and example, and 0 where either error is zero.

  Raises:
    ValueError: as in `dfa`.

  Cost: one gradient evaluation.

  Notes:
    The paper shows means and standard deviations over the examples of a batch.

  References:
    [366] Launay, Poli, Krzakala, "Principled Training of Neural Networks with Direct Feedback
      Alignment", 2019, arXiv:1906.04554

  Example:
    >>> import jax.numpy as jnp
    >>> layer = lambda w, x: w * x
    >>> alignment = dfa_alignment([layer, layer], lambda outputs: jnp.sum(outputs))
    >>> params, feedback = [jnp.array(2.0), jnp.array(3.0)], [jnp.array([[-0.5]])]
    >>> print(alignment(params, feedback, jnp.array([[10.0]])))
    [[-1.]]
  """
  check.whole("the number of layers", len(layers), 1)

  def alignment(params, feedback, inputs, *targets):
    _check_count(layers, params, feedback)

    def forward(shifts):
      """The outputs, where each hidden layer's are moved by a shift, and these before it."""
      x, hidden = inputs, []
      for layer, weights, shift in zip(layers[:-1], params[:-1], shifts, strict=True):
        x = layer(weights, x) + shift
        hidden.append(x)
      return layers[-1](params[-1], x), hidden

    still = [jnp.zeros(())] * len(feedback)
    hidden = jax.eval_shape(forward, still)[1]
    for i, (matrix, x) in enumerate(zip(feedback, hidden, strict=True)):
      _check_matrix(matrix, x, i)
    outputs, back, _ = jax.vjp(forward, [jnp.zeros(x.shape, x.dtype) for x in hidden], has_aux=True)
    error = jax.grad(loss)(_fits(outputs, feedback), *targets)
    true = back(error)[0]
    cosines = [_cosines(_rows(error) @ b, _rows(t)) for b, t in zip(feedback, true, strict=True)]
    return jnp.stack(cosines) if cosines else jnp.zeros((0, outputs.shape[0]))

  return alignment


@jax.custom_vjp
def _tap(x: jax.Array, matrix: jax.Array) -> tuple[jax.Array, jax.Array]:
  """`x`, and a probe. What comes back to `x` is what came back to the probe, times `matrix`."""
  return x, jnp.zeros_like(x, shape=(x.shape[0], matrix.shape[0]))


def _tap_forward(x, matrix):
  return _tap(x, matrix), (matrix, x)


def _tap_backward(kept, cotangents):
  matrix, x = kept
  local = (cotangents[1] @ matrix).reshape(x.shape)
  return local.astype(x.dtype), jnp.zeros_like(matrix)


_tap.defvjp(_tap_forward, _tap_backward)


@jax.custom_vjp
def _emit(outputs: jax.Array, probes: list[jax.Array]) -> jax.Array:
  """`outputs`. What comes back to them comes back to every probe, too."""
  del probes
  return outputs


def _emit_forward(outputs, probes):
  return outputs, [jnp.zeros((), probe.dtype) for probe in probes]


def _emit_backward(probes, error):
  return error, [_rows(error).astype(probe.dtype) for probe in probes]


_emit.defvjp(_emit_forward, _emit_backward)


def _rows(x: jax.Array) -> jax.Array:
  return x.reshape(x.shape[0], -1)


def _cosines(x: jax.Array, y: jax.Array) -> jax.Array:
  """The cosine of the angle between each row of `x` and the same one of `y`."""
  lengths = jnp.linalg.norm(x, axis=1) * jnp.linalg.norm(y, axis=1)
  return jnp.sum(x * y, axis=1) / jnp.where(lengths == 0, 1, lengths)


def _check_count(layers: Sequence[Layer], params: Sequence[Any], feedback: Sequence[Any]) -> None:
  if len(params) != len(layers) or len(feedback) != len(layers) - 1:
    need = f"{len(layers)} layers need as many params, and one matrix less"
    raise ValueError(f"{need}, got {len(params)} params and {len(feedback)} matrices")


def _check_matrix(matrix: jax.Array, x: Any, layer: int) -> None:
  size = x.size // x.shape[0]
  if matrix.ndim != 2 or matrix.shape[1] != size:
    raise ValueError(f"feedback[{layer}] must be of shape [outputs, {size}], got {matrix.shape}")


def _fits(outputs: jax.Array, feedback: Sequence[jax.Array]) -> jax.Array:
  """`outputs`, where every matrix has a row for each of them; ValueError otherwise."""
  size = outputs.size // outputs.shape[0]
  for i, matrix in enumerate(feedback):
    if matrix.shape[0] != size:
      raise ValueError(f"feedback[{i}] must have {size} rows, got {matrix.shape[0]}")
  return outputs
