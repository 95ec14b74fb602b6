"""The Hessian's spectrum: extreme eigenvalues, density and trace by products with vectors."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrl import check, oracle

from . import _lanczos, _loops, _vectors
from ._lanczos import Extremes
from ._vectors import Estimate


class Spectrum(NamedTuple):
  """Gaussian quadrature of the spectrum, as seen by random probes.

  Attributes:
    eigenvalues: nodes `[probes, order]`, ascending for each probe.
    weights: the share of the eigenvalues near each node `[probes, order]`; sums to 1.
    trace: the trace as each probe sees it, `[probes]`.
  """

  eigenvalues: jax.Array
  weights: jax.Array
  trace: jax.Array


def hessian_spectrum(
  loss: Callable[[Any], jax.Array],
  params: Any,
  key: jax.Array,
  *,
  order: int = 80,
  probes: int = 4,
) -> Spectrum:
  r"""The density of the Hessian's eigenvalues by stochastic Lanczos quadrature.

  For each random unit vector :math:`v`, m steps of Lanczos' iteration with full
  reorthogonalisation give a tridiagonal :math:`T = Y \Theta Y^\top`; then for every
  polynomial of degree below 2m

  .. math::
    v^\top p(H) v = \sum_i Y_{1i}^2 \, p(\theta_i),
    \qquad E \, v^\top p(H) v = \tfrac{1}{n} \mathrm{tr} \, p(H).

  `spectral_density` smooths the nodes to a curve.

  Args:
    loss: a twice differentiable function of the parameters.
    params: a tree of arrays with n numbers in all; bf16 is widened to float32 first.
    key: of the probes.
    order: m, at least 1; not more than n steps are made.
    probes: random vectors, at least 1.

  Returns:
    The Spectrum.

  Raises:
    ValueError: `order` or `probes` is no positive whole number, or `params` is empty.

  Cost: `order * probes` Hessian-vector products, each about two gradient evaluations;
  `4 * order` bytes a parameter for the Lanczos vectors of one probe, which lie as `params`
  do (sharded parameters give sharded vectors). Where that is too much, a smaller order with
  more probes sees the same density more coarsely.

  Notes:
    The paper diagonalises whole Hessians; products with vectors reach larger networks. Where
    activations have kinks (ReLU), this is the Hessian almost everywhere. Outside `jax.jit`
    the steps are compiled calls, one after the other.

  References:
    [127] Sagun, Evci, Guney, Dauphin, Bottou, "Empirical Analysis of the Hessian of
      Over-Parametrized Neural Networks", 2017, arXiv:1706.04454
    Ubaru, Chen, Saad, "Fast Estimation of tr(f(A)) via Stochastic Lanczos Quadrature", 2017
    Ghorbani, Krishnan, Xiao, "An Investigation into Neural Net Optimization via Hessian
      Eigenvalue Density", 2019, arXiv:1901.10159

  Example:
    >>> import jax, jax.numpy as jnp
    >>> loss = lambda w: 0.5 * jnp.sum(jnp.array([1.0, 2.0, 6.0]) * w**2)
    >>> spectrum = hessian_spectrum(loss, jnp.ones(3), jax.random.key(0), order=3, probes=1)
    >>> print(", ".join(f"{x:.3f}" for x in spectrum.eigenvalues[0]))
    1.000, 2.000, 6.000
  """
  check.whole("order", order, 1)
  check.whole("probes", probes, 1)
  params = _vectors.wide(params)
  step = _lanczos.step_of(loss)

  def of_probe(probe_key, params):
    eigenvalues, vectors = _lanczos.ritz(_lanczos.run(step, order, probe_key, params))
    return eigenvalues, vectors[0] ** 2

  eigenvalues, weights = _loops.each(of_probe, jax.random.split(key, probes), params)
  means = jnp.sum(weights * eigenvalues, axis=1)
  return Spectrum(eigenvalues, weights, _vectors.size(params) * means)


def spectral_density(
  spectrum: Spectrum, points: jax.Array, width: jax.typing.ArrayLike
) -> jax.Array:
  r"""The density of eigenvalues at `points [N]`, smoothed by Gaussians of deviation `width`.

  .. math::
    \phi(x) = \tfrac{1}{P} \sum_{p, i} w_{pi} \, \mathcal{N}(x; \theta_{pi}, \sigma^2)

  Args:
    spectrum: of `hessian_spectrum`.
    points: where, `[N]`.
    width: :math:`\sigma`, above 0.

  Returns:
    The density `[N]`, whose integral is 1.

  Raises:
    ValueError: `width` is not above 0.

  Cost: `N * probes * order` exponentials.

  References:
    [127] Sagun, Evci, Guney, Dauphin, Bottou, "Empirical Analysis of the Hessian of
      Over-Parametrized Neural Networks", 2017, arXiv:1706.04454

  Example:
    >>> one = Spectrum(jnp.zeros((1, 1)), jnp.ones((1, 1)), jnp.zeros(1))
    >>> print(f"{spectral_density(one, jnp.zeros(1), 1.0)[0]:.4f}")  # 1 / sqrt(2 pi)
    0.3989
  """
  check.above("width", width, 0)
  nodes, weights = spectrum.eigenvalues.reshape(-1), spectrum.weights.reshape(-1)
  far = (points[:, None] - nodes[None]) / width
  bells = jnp.exp(-(far**2) / 2) / (width * jnp.sqrt(2 * jnp.pi))
  return bells @ weights / spectrum.eigenvalues.shape[0]


def hessian_extremes(
  loss: Callable[[Any], jax.Array],
  params: Any,
  key: jax.Array,
  *,
  count: int = 1,
  order: int = 40,
) -> Extremes:
  r"""The smallest and largest eigenvalues of the Hessian by Lanczos' iteration.

  With the basis :math:`V` of m vectors, :math:`T = V^\top H V = Y \Theta Y^\top` and what
  remains outside, :math:`\beta_m`, the eigenvalues are near :math:`\theta_i` and the vectors
  near :math:`V y_i`; an eigenvalue lies within :math:`\beta_m |y_{mi}|` of
  :math:`\theta_i`.

  Args:
    loss: a twice differentiable function of the parameters.
    params: a tree of arrays; bf16 is widened to float32 first.
    key: of the first vector.
    count: how many at each end, at least 1 and at most `order` and the number of parameters.
    order: m, steps of the iteration; more make the errors smaller.

  Returns:
    The Extremes.

  Raises:
    ValueError: `count` or `order` is out of range, or `params` is empty.

  Cost: `order` Hessian-vector products, each about two gradient evaluations; `4 * order`
  bytes a parameter for the Lanczos vectors, which lie as `params` do, and `8 * count` for
  the eigenvectors. A model of 1e8 parameters needs 16 GB at order 40: its ten largest
  eigenvalues are often good at 20.

  Notes:
    Where the Krylov space closes (repeated eigenvalues, fewer steps needed than asked for)
    the iteration goes on in a new random direction, so multiplicities are found.

  References:
    [127] Sagun, Evci, Guney, Dauphin, Bottou, "Empirical Analysis of the Hessian of
      Over-Parametrized Neural Networks", 2017, arXiv:1706.04454

  Example:
    >>> import jax, jax.numpy as jnp
    >>> loss = lambda w: 2.0 * w["a"] ** 2 - 3.0 * w["b"] ** 2
    >>> params = {"a": jnp.array(1.0), "b": jnp.array(1.0)}
    >>> found = hessian_extremes(loss, params, jax.random.key(0))
    >>> print(f"{found.smallest[0]:.3f}, {found.largest[0]:.3f}")
    -6.000, 4.000
  """
  params = _vectors.wide(params)
  _lanczos.check_counts(count, order, params)
  return _lanczos.extremes(_lanczos.run(_lanczos.step_of(loss), order, key, params), count)


def hessian_trace(
  loss: Callable[[Any], jax.Array], params: Any, key: jax.Array, *, probes: int = 16
) -> Estimate:
  r"""The trace of the Hessian by Hutchinson's estimator, with vectors of random signs.

  .. math::
    \mathrm{tr} \, H = E \, z^\top H z, \qquad z_i = \pm 1

  Args:
    loss: a twice differentiable function of the parameters.
    params: a tree of arrays; bf16 is widened to float32 first.
    key: of the signs.
    probes: random vectors, at least 1.

  Returns:
    An Estimate: mean and standard error. Exact for a diagonal Hessian.

  Raises:
    ValueError: `probes` is no positive whole number, or `params` is empty.

  Cost: `probes` Hessian-vector products, each about two gradient evaluations; 8 bytes a
  parameter.

  References:
    [127] Sagun, Evci, Guney, Dauphin, Bottou, "Empirical Analysis of the Hessian of
      Over-Parametrized Neural Networks", 2017, arXiv:1706.04454
    Hutchinson, "A Stochastic Estimator of the Trace of the Influence Matrix for Laplacian
      Smoothing Splines", 1989

  Example:
    >>> import jax, jax.numpy as jnp
    >>> loss = lambda w: jnp.sum(jnp.array([1.0, 2.0]) * w**2)
    >>> print(hessian_trace(loss, jnp.ones(2), jax.random.key(0), probes=1).mean)
    6.0
  """
  check.whole("probes", probes, 1)
  params = _vectors.wide(params)

  @jax.jit
  def of_probe(probe_key, params):
    signs = jax.tree.map(jnp.sign, _vectors.normal(probe_key, params))
    return _vectors.dot(signs, _vectors.hessian_product(loss, params, signs)[1])

  return _vectors.estimate(_loops.each(of_probe, jax.random.split(key, probes), params))


def gauss_newton_loss(value_fn: oracle.Oracle, params: Any) -> Callable[[Any], jax.Array]:
  r"""A loss whose Hessian at `params` is the Gauss-Newton part of that of `value_fn`.

  With outputs :math:`z(w)` and the loss :math:`\ell(z)` of them, the Hessian is the sum

  .. math::
    H = J^\top \nabla_z^2 \ell \, J + \sum_c \frac{\partial \ell}{\partial z_c} \nabla_w^2 z_c.

  The loss of the outputs linearised at `params` has the first part alone; its difference
  from `value_fn` has the second. Hand either to the other functions of this file.

  Args:
    value_fn: an Oracle with `outputs` and `loss_of`.
    params: where the outputs are linearised, and where the Hessian is to be taken.

  Returns:
    A function of the parameters.

  Raises:
    TypeError: `value_fn` is not a `jaxrl.oracle.Oracle` with these parts.

  Cost: an evaluation is one forward-mode pass through the model.

  References:
    [127] Sagun, Evci, Guney, Dauphin, Bottou, "Empirical Analysis of the Hessian of
      Over-Parametrized Neural Networks", 2017, arXiv:1706.04454

  Example:
    >>> import jax, jax.numpy as jnp
    >>> from jaxrl.oracle import Oracle
    >>> outputs, loss_of = (lambda w: w**2), (lambda z: 0.5 * jnp.sum(z**2))
    >>> w = jnp.array(3.0)
    >>> value_fn = Oracle(lambda w: loss_of(outputs(w)), w, outputs=outputs, loss_of=loss_of)
    >>> float(jax.hessian(gauss_newton_loss(value_fn, w))(w))  # (2 w)^2, of 6 w^2 in all
    36.0
  """
  value_fn = oracle.need_oracle("gauss_newton_loss", value_fn)
  params = _vectors.wide(params)

  def loss(at):
    away = jax.tree.map(jnp.subtract, at, params)
    outputs, change = jax.jvp(value_fn.outputs, (params,), (away,))
    return value_fn.loss_of(jax.tree.map(jnp.add, outputs, change))

  return loss
