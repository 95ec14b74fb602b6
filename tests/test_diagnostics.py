"""Diagnostics against dense Hessians, closed forms and transcriptions in NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxrl import oracle
from jaxrl.diagnostics.class_extremes import class_extremes
from jaxrl.diagnostics.directional_sharpness import directional_sharpness
from jaxrl.diagnostics.hessian_spectrum import (
  Spectrum,
  gauss_newton_loss,
  hessian_extremes,
  hessian_spectrum,
  hessian_trace,
  spectral_density,
)
from jaxrl.diagnostics.linear_path import filter_normalized, linear_path, loss_plane
from jaxrl.diagnostics.module_criticality import module_criticality
from jaxrl.diagnostics.sharpness import random_sharpness, worst_case_sharpness
from jaxrl.parallel import make_mesh
from tests import tiers

pytestmark = tiers.unless_changed("jaxrl/diagnostics/")

KEY = jax.random.key(0, impl="unsafe_rbg")  # Compiles in half the time.
RNG = np.random.default_rng(0)
INPUTS = RNG.normal(size=(16, 4)).astype(np.float32)
LABELS = RNG.integers(0, 3, 16)
CLOSE = functools.partial(np.testing.assert_allclose, rtol=2e-4, atol=2e-5)


def network():
  """Parameters of a small network as a tree, 51 numbers."""
  rng = np.random.default_rng(1)
  shapes = {"first": {"kernel": (4, 6), "bias": (6,)}, "second": {"kernel": (6, 3), "gain": (3,)}}
  return jax.tree.map(
    lambda shape: jnp.asarray(rng.normal(size=shape), jnp.float32),
    shapes,
    is_leaf=lambda x: type(x) is tuple,
  )


PARAMS = network()


def logits_of(params, inputs=INPUTS):
  hidden = jnp.tanh(inputs @ params["first"]["kernel"] + params["first"]["bias"][None])
  return hidden @ params["second"]["kernel"] * params["second"]["gain"][None]


def losses_of(params, inputs=INPUTS):
  logs = jax.nn.log_softmax(logits_of(params, inputs))
  return -jnp.sum(logs * jax.nn.one_hot(LABELS, 3), axis=1)


def loss(params):
  return jnp.mean(losses_of(params))


def class_loss(params, label):
  member = label == LABELS
  return jnp.sum(member * losses_of(params)) / jnp.maximum(jnp.sum(member), 1)


def dense(function, params=PARAMS, *, like=PARAMS):
  """The Hessian as a NumPy matrix."""
  flat, unflatten = jax.flatten_util.ravel_pytree(like)
  del flat
  start = jax.flatten_util.ravel_pytree(params)[0]
  return np.asarray(jax.hessian(lambda v: function(unflatten(v)))(start), np.float64)


def flat(tree):
  return np.asarray(jax.flatten_util.ravel_pytree(tree)[0], np.float64)


@functools.cache
def exact():
  """Eigenvalues and eigenvectors of the network's Hessian."""
  return np.linalg.eigh(dense(loss))


def quadratic(eigenvalues, seed=2):
  """A loss with this spectrum in a random basis, over a tree of two arrays."""
  eigenvalues = np.asarray(eigenvalues, np.float64)
  basis, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(len(eigenvalues),) * 2))
  matrix = jnp.asarray(basis * eigenvalues @ basis.T, jnp.float32)

  def value(params):
    w = jnp.concatenate([params["a"], params["b"].reshape(-1)])
    return 0.5 * jnp.vdot(w, jnp.matmul(matrix, w, precision="highest"), precision="highest")

  size = len(eigenvalues)
  params = {"a": jnp.ones(size - 4), "b": jnp.ones((2, 2))}
  return value, params, np.asarray(matrix, np.float64)


# hessian_extremes


@functools.cache
def network_extremes():
  return hessian_extremes(loss, PARAMS, KEY, count=4, order=51)


def test_extremes_equal_those_of_the_dense_hessian():
  found, (eigenvalues, vectors) = network_extremes(), exact()
  CLOSE(found.largest, eigenvalues[::-1][:4])
  CLOSE(found.smallest, eigenvalues[:4])
  top = np.stack([flat(jax.tree.map(lambda x, i=i: x[i], found.largest_vectors)) for i in range(4)])
  CLOSE(top @ top.T, np.eye(4))
  CLOSE(np.abs(top @ vectors[:, ::-1][:, :4]), np.eye(4), atol=5e-3)


def test_extremes_of_few_steps_lie_within_their_errors():
  eigenvalues = np.concatenate([np.linspace(-1, 1, 56), [5, 10, 20, -8]])
  value, params, _ = quadratic(eigenvalues)
  found = hessian_extremes(value, params, KEY, count=3, order=14)
  for near, error in zip(found.largest, found.largest_error, strict=True):
    assert np.abs(eigenvalues - near).min() <= error + 1e-5
  CLOSE(found.largest[:2], [20, 10])
  CLOSE(found.smallest[0], -8)
  assert found.smallest_error[2] > 1e-3 > found.largest_error[0]


@pytest.mark.parametrize(
  "eigenvalues",
  [
    pytest.param([3.0] * 8, id="one value"),
    pytest.param([0.0] * 8, id="flat"),
    pytest.param([2.0] * 5 + [-1.0] * 3, id="two values"),
    pytest.param([1e6, 1.0, 1.0, 1.0, -1e-2, 0.0, 0.0, 0.0], id="wide"),
  ],
)
def test_a_closed_krylov_space_gives_multiplicities_and_nothing_else(eigenvalues):
  value, params, matrix = quadratic(eigenvalues)
  found = hessian_extremes(value, params, KEY, count=8, order=100)
  scale = max(1e-6, np.abs(eigenvalues).max())
  np.testing.assert_allclose(found.smallest, np.linalg.eigvalsh(matrix), atol=1e-5 * scale)
  np.testing.assert_allclose(found.largest[::-1], found.smallest)


def test_orthogonality_survives_many_steps_in_float32():
  value, params, _ = quadratic(np.geomspace(1e-6, 1e3, 200))
  found = hessian_extremes(value, params, KEY, count=100, order=100)
  vectors = np.concatenate(
    [np.asarray(x, np.float64).reshape(100, -1) for x in jax.tree.leaves(found.largest_vectors)],
    axis=1,
  )
  np.testing.assert_allclose(vectors @ vectors.T, np.eye(100), atol=1e-5)
  # Without ghosts: no large eigenvalue appears twice.
  np.testing.assert_allclose(found.largest[:10], np.geomspace(1e-6, 1e3, 200)[::-1][:10], rtol=1e-4)


def test_jitted_extremes_are_the_same():
  value, params, _ = quadratic(np.arange(12.0))
  run = functools.partial(hessian_extremes, value, count=2, order=12)
  for eager, jitted in zip(run(params, KEY)[:2], jax.jit(run)(params, KEY)[:2], strict=True):
    CLOSE(eager, jitted)


# hessian_spectrum


def test_quadrature_has_the_moments_of_the_spectrum():
  value, params, matrix = quadratic(np.concatenate([np.linspace(-1, 1, 36), [4, 6, 8, 10]]))
  probes = 200
  spectrum = jax.jit(lambda p: hessian_spectrum(value, p, KEY, order=8, probes=probes))(params)
  np.testing.assert_allclose(spectrum.weights.sum(axis=1), 1, rtol=1e-5)
  size, power = len(matrix), np.eye(len(matrix))
  for degree in range(1, 5):
    power = power @ matrix
    moments = np.sum(spectrum.weights * spectrum.eigenvalues**degree, axis=1)
    # The variance of v' A v over the unit sphere.
    spread = 2 * (size * np.sum(power**2) - np.trace(power) ** 2) / (size**2 * (size + 2))
    error = np.sqrt(spread / probes)
    assert abs(moments.mean() - np.trace(power) / size) < 4 * error
    np.testing.assert_allclose(moments.std(), np.sqrt(spread), rtol=0.3)
  np.testing.assert_allclose(
    spectrum.trace, size * np.sum(spectrum.weights * spectrum.eigenvalues, axis=1), rtol=1e-5
  )


def test_nodes_of_a_full_run_are_the_eigenvalues():
  spectrum = hessian_spectrum(loss, PARAMS, KEY, order=80, probes=2)
  assert spectrum.eigenvalues.shape == (2, 51)
  for nodes in spectrum.eigenvalues:
    CLOSE(nodes, exact()[0], atol=1e-4)


def test_spectral_density_is_the_mean_of_gaussians():
  nodes, weights = RNG.normal(size=(3, 5)), RNG.dirichlet(np.ones(5), 3)
  points, width = np.linspace(-8, 8, 2001), 0.3
  expected = np.zeros_like(points)
  for node, weight in zip(nodes.ravel(), weights.ravel(), strict=True):
    bell = np.exp(-((points - node) ** 2) / (2 * width**2)) / (width * np.sqrt(2 * np.pi))
    expected += weight * bell / 3
  spectrum = Spectrum(jnp.asarray(nodes), jnp.asarray(weights), jnp.zeros(3))
  found = spectral_density(spectrum, jnp.asarray(points), width)
  CLOSE(found, expected)
  assert np.trapezoid(found, points) == pytest.approx(1, rel=1e-4)


def test_trace_of_the_dense_hessian():
  trace = np.trace(dense(loss))
  found = hessian_trace(loss, PARAMS, KEY, probes=100)
  assert abs(found.mean - trace) < 4 * found.error
  # The variance of z' A z over signs.
  off = dense(loss) - np.diag(np.diag(dense(loss)))
  np.testing.assert_allclose(found.error, np.sqrt(2 * np.sum(off**2) / 100), rtol=0.3)
  assert np.isnan(hessian_trace(loss, PARAMS, KEY, probes=1).error)


def test_gauss_newton_and_the_rest_add_up_to_the_hessian():
  def loss_of(logits):
    return -jnp.mean(jnp.sum(jax.nn.log_softmax(logits) * jax.nn.one_hot(LABELS, 3), axis=1))

  value_fn = oracle.Oracle(loss, PARAMS, outputs=logits_of, loss_of=loss_of)
  linear = gauss_newton_loss(value_fn, PARAMS)
  _, unflatten = jax.flatten_util.ravel_pytree(PARAMS)
  start = jax.flatten_util.ravel_pytree(PARAMS)[0]
  jacobian = np.asarray(jax.jacobian(lambda v: logits_of(unflatten(v)))(start), np.float64)
  p = np.asarray(jax.nn.softmax(logits_of(PARAMS)), np.float64)
  curvature = (np.eye(3) * p[:, :, None] - p[:, :, None] * p[:, None]) / 16
  expected = np.einsum("bci,bcd,bdj->ij", jacobian, curvature, jacobian)
  CLOSE(dense(linear), expected)
  CLOSE(linear(PARAMS), loss(PARAMS))
  found = hessian_extremes(linear, PARAMS, KEY, count=2, order=51)
  CLOSE(found.largest, np.linalg.eigvalsh(expected)[::-1][:2])
  assert found.smallest[0] > -1e-4
  with pytest.raises(TypeError, match="needs the parts of the loss"):
    gauss_newton_loss(loss, PARAMS)


# directional_sharpness


def test_directional_sharpness_by_hand():
  def value(w):
    return 50 * w[0] ** 2 + 0.5 * w[1] ** 2

  # H = diag(100, 1), and the gradient (10, 1).
  w = jnp.array([0.1, 1.0])
  clipped = directional_sharpness(value, w, jnp.array([1.0, 1.0]))
  CLOSE(clipped, [50.5, 11 / np.sqrt(2 * 101), 60.5 / 101])
  CLOSE(directional_sharpness(value, w, jnp.array([10.0, 1.0])).sharpness, 10001 / 101)
  uphill_or_down = directional_sharpness(value, w, -1e-20 * jnp.array([1.0, 1.0]))
  CLOSE(uphill_or_down, [50.5, -11 / np.sqrt(2 * 101), 60.5 / 101])


def test_directional_sharpness_equals_that_of_the_dense_hessian():
  direction = jax.tree.map(jnp.cos, PARAMS)
  u, gradient = flat(direction), flat(jax.grad(loss)(PARAMS))
  found = directional_sharpness(loss, PARAMS, direction)
  CLOSE(found.sharpness, u @ dense(loss) @ u / (u @ u))
  CLOSE(found.correlation, gradient @ u / np.linalg.norm(u) / np.linalg.norm(gradient))


@pytest.mark.parametrize(
  ("slope", "curvature", "direction", "expected"),
  [
    pytest.param(1.0, 2.0, 0.0, (0, 0, 0), id="no direction"),
    pytest.param(0.0, 0.0, 1.0, (0, 0, 0), id="flat"),
    pytest.param(-1.0, 0.0, 1.0, (0, -1, np.inf), id="linear"),
    pytest.param(0.0, -2.0, 1.0, (-2, 0, np.inf), id="maximum"),
  ],
)
def test_directional_sharpness_where_there_is_no_minimum(slope, curvature, direction, expected):
  found = directional_sharpness(
    lambda w: slope * w + curvature * w**2 / 2, jnp.array(0.0), jnp.array(direction)
  )
  np.testing.assert_array_equal(found, expected)


# class_extremes


def test_extremes_of_each_class():
  found = class_extremes(class_loss, PARAMS, KEY, 4, count=2, order=51)
  for label in range(3):
    eigenvalues = np.linalg.eigvalsh(dense(lambda p, c=label: class_loss(p, c)))
    CLOSE(found.smallest[label], eigenvalues[:2], atol=1e-4)
    CLOSE(found.largest[label], eigenvalues[::-1][:2], atol=1e-4)
  np.testing.assert_array_equal([found.smallest[3], found.largest[3]], np.zeros((2, 2)))


# worst_case_sharpness, random_sharpness


def highest_rise(matrix, gradient, rho):
  """max of g'u + u'Hu/2 over the ball of radius rho, by the secular equation."""
  eigenvalues, vectors = np.linalg.eigh(matrix)
  coordinates = vectors.T @ gradient

  def solution(shift):
    return coordinates / (shift - eigenvalues)

  low, high = eigenvalues[-1] + 1e-12, eigenvalues[-1] + np.linalg.norm(gradient) / rho + 1
  for _ in range(200):
    middle = (low + high) / 2
    low, high = (middle, high) if np.linalg.norm(solution(middle)) > rho else (low, middle)
  u = solution(high)
  return coordinates @ u + np.sum(eigenvalues * u**2) / 2


def test_worst_case_of_a_quadratic():
  value, params, matrix = quadratic([9.0, 4.0, 2.0, 1.0, 0.5, 0.1, 0.0, 0.0])
  centre = jax.tree.map(jnp.zeros_like, params)
  at_minimum = worst_case_sharpness(value, centre, KEY, 0.3, steps=60)
  np.testing.assert_allclose(at_minimum, 0.5 * 9 * 0.3**2, rtol=1e-4)
  expected = highest_rise(matrix, matrix @ flat(params), 0.3)
  np.testing.assert_allclose(worst_case_sharpness(value, params, KEY, 0.3), expected, rtol=1e-4)


def test_worst_case_of_a_saddle_goes_up():
  value, params, _ = quadratic([2.0, -7.0, -1.0, -1.0, 1.0, 0.0])
  centre = jax.tree.map(jnp.zeros_like, params)
  found = worst_case_sharpness(value, centre, KEY, 0.5, steps=80)
  np.testing.assert_allclose(found, 0.5 * 2 * 0.5**2, rtol=1e-3)


def test_adaptive_worst_case_in_units_of_the_parameters():
  # With c = |w| the problem is g c' u + u' diag(c) H diag(c) u / 2 on the ball.
  value, params, matrix = quadratic([9.0, 4.0, 2.0, 1.0, 0.5, 0.1, 0.0, 0.0])
  params = jax.tree.map(lambda x: x * jnp.linspace(-2, 2, x.size).reshape(x.shape), params)
  w = flat(params)
  scaled = np.abs(w)[:, None] * matrix * np.abs(w)
  expected = highest_rise(scaled, np.abs(w) * (matrix @ w), 0.3)
  found = worst_case_sharpness(value, params, KEY, 0.3, steps=60, adaptive=True)
  np.testing.assert_allclose(found, expected, rtol=1e-3)


def test_parameters_are_left_as_they_were():
  # Loops outside jit donate what they carry.
  params = network()
  worst_case_sharpness(loss, params, KEY, steps=1)
  module_criticality(loss, params, epochs=1)
  hessian_extremes(loss, params, KEY, order=2)
  jax.tree.map(np.testing.assert_array_equal, params, PARAMS)


def test_no_radius_and_a_maximum_have_no_sharpness():
  value, params, _ = quadratic(-np.arange(8.0))
  centre = jax.tree.map(jnp.zeros_like, params)
  assert worst_case_sharpness(value, centre, KEY, 0.1) == 0
  assert worst_case_sharpness(loss, PARAMS, KEY, 0.0) == 0
  np.testing.assert_array_equal(random_sharpness(loss, PARAMS, KEY, 0.0), (0, 0))


@pytest.mark.parametrize("adaptive", [False, True])
def test_random_perturbations_of_a_quadratic(adaptive):
  value, params, matrix = quadratic([9.0, 4.0, 2.0, 1.0, 0.5, 0.1, 0.0, -1.0])
  params = jax.tree.map(lambda x: x * jnp.linspace(0.1, 2, x.size).reshape(x.shape), params)
  scale = flat(params) if adaptive else np.ones(8)
  expected = 0.5 * 0.2**2 * np.sum(scale**2 * np.diag(matrix))
  run = functools.partial(random_sharpness, value, samples=4000, adaptive=adaptive)
  found = jax.jit(run)(params, KEY, 0.2)
  assert abs(found.mean - expected) < 4 * found.error
  gradient = scale * (matrix @ flat(params))
  curvature = scale[:, None] * matrix * scale
  spread = 0.2**2 * np.sum(gradient**2) + 0.2**4 * np.sum(curvature**2) / 2
  np.testing.assert_allclose(found.error, np.sqrt(spread / 4000), rtol=0.05)


# module_criticality


def transcribed_criticality(batches, name, epsilon, epochs, learning_rate):
  """The official code's loop, in NumPy: SGD upwards over the batches, then projection."""

  def gradient(w, x):
    return np.asarray(jax.grad(batch_loss)(with_module(w), jnp.asarray(x))[name]["kernel"])

  def with_module(w):
    return {**PARAMS, name: {**PARAMS[name], "kernel": jnp.asarray(w)}}

  def mean(w):
    return np.mean([batch_loss(with_module(w), x) for x in batches])

  origin = np.asarray(PARAMS[name]["kernel"])
  w, highest = origin, 0.0
  for _ in range(epochs):
    for x in batches:
      w = w + learning_rate * gradient(w, x)
    times = np.linalg.norm(w - origin) / np.linalg.norm(origin)
    if times > epsilon:
      w = origin + (w - origin) / times * epsilon
    highest = max(highest, mean(w))
  return highest - mean(origin)


def batch_loss(params, inputs):
  return jnp.mean(jnp.logaddexp(0, logits_of(params, inputs)))


def test_criticality_equals_the_official_loop():
  batches = INPUTS.reshape(4, 4, 4)
  found = module_criticality(batch_loss, PARAMS, batches, epsilon=0.3, epochs=4, learning_rate=0.4)
  assert list(found) == ["first/kernel", "second/kernel"]
  for name in ("first", "second"):
    expected = transcribed_criticality(batches, name, 0.3, 4, 0.4)
    np.testing.assert_allclose(found[f"{name}/kernel"], expected, rtol=1e-4)


def test_criticality_of_a_linear_model_in_closed_form():
  # The steepest ascent of <x, w> goes epsilon |w| along x.
  x = {"a": jnp.array([3.0, 4.0]), "b": jnp.array([1.0, 0.0])}
  w = {"a": jnp.array([0.0, 2.0]), "b": jnp.array([0.3, -0.4])}
  found = module_criticality(
    lambda w: jnp.vdot(x["a"], w["a"]) + jnp.vdot(x["b"], w["b"]), w, where="."
  )
  CLOSE([found["a"], found["b"]], [0.1 * 2 * 5, 0.1 * 0.5 * 1])
  still = module_criticality(loss, PARAMS, epsilon=0.0, epochs=1)
  np.testing.assert_allclose(list(still.values()), 0, atol=1e-6)


# linear_path, loss_plane, filter_normalized


def test_losses_along_a_path_and_over_a_plane():
  first, second = jax.tree.map(jnp.sin, PARAMS), jax.tree.map(jnp.cos, PARAMS)
  x, y = np.array([-1.0, 0.0, 0.5]), np.array([0.0, 2.0])
  end = jax.tree.map(jnp.add, PARAMS, first)
  line = linear_path(loss, PARAMS, end, x)
  plane = jax.jit(functools.partial(loss_plane, loss))(PARAMS, first, second, x, y)
  assert plane.shape == (3, 2)
  for i, a in enumerate(x):
    for j, b in enumerate(y):
      point = jax.tree.map(lambda w, d, e, a=a, b=b: w + a * d + b * e, PARAMS, first, second)
      CLOSE(plane[i, j], loss(point))
  CLOSE(line, plane[:, 0])


def test_filters_have_the_norms_of_the_parameters():
  direction = {"kernel": RNG.normal(size=(3, 3, 2, 5)), "bias": RNG.normal(size=5), "dead": 0}
  direction["dead"] = np.zeros((2, 2))
  params = {"kernel": RNG.normal(size=(3, 3, 2, 5)), "bias": np.ones(5), "dead": np.ones((2, 2))}
  found = filter_normalized(direction, jax.tree.map(jnp.asarray, params))
  for i in range(5):
    d, w = direction["kernel"][..., i], params["kernel"][..., i]
    CLOSE(found["kernel"][..., i], d / np.linalg.norm(d) * np.linalg.norm(w))
  np.testing.assert_array_equal(found["bias"], np.zeros(5))
  np.testing.assert_array_equal(found["dead"], np.zeros((2, 2)))
  rows = filter_normalized(direction, jax.tree.map(jnp.asarray, params), axis=0)
  CLOSE(np.linalg.norm(rows["kernel"][0]), np.linalg.norm(params["kernel"][0]))


# All of them


def numbers(function, params, loss=loss, class_loss=class_loss, key=KEY):
  """What each diagnostic says, with little work."""
  direction = jax.tree.map(jnp.cos, params)
  results = {
    "extremes": lambda: hessian_extremes(loss, params, key, order=8)[:2],
    "spectrum": lambda: hessian_spectrum(loss, params, key, order=4, probes=2),
    "trace": lambda: hessian_trace(loss, params, key, probes=2),
    "classes": lambda: class_extremes(class_loss, params, key, 2, order=4)[:2],
    "directional": lambda: directional_sharpness(loss, params, direction),
    "worst": lambda: worst_case_sharpness(loss, params, key, steps=3),
    "random": lambda: random_sharpness(loss, params, key, samples=3),
    "criticality": lambda: module_criticality(loss, params, epochs=2),
    "path": lambda: linear_path(loss, params, direction, [0.0, 0.5]),
    "plane": lambda: loss_plane(loss, params, direction, direction, [0.0, 0.1], [0.1]),
    "filters": lambda: filter_normalized(direction, params),
  }
  return results[function]()


DIAGNOSTICS = (
  *("extremes", "spectrum", "trace", "classes", "directional", "worst", "random"),
  *("criticality", "path", "plane", "filters"),
)


@pytest.mark.full
@pytest.mark.parametrize("name", DIAGNOSTICS)
def test_a_sharded_loss_gives_what_a_device_gives(name):
  mesh = make_mesh("data=4,fsdp=2")
  rows = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
  inputs, labels = jax.device_put((INPUTS, LABELS), rows)

  def sharding_of(x):
    split = x.ndim and x.shape[0] % 2 == 0
    return NamedSharding(mesh, PartitionSpec("fsdp") if split else PartitionSpec())

  def losses(params, inputs, labels):
    logs = jax.nn.log_softmax(logits_of(params, inputs))
    return -jnp.sum(logs * jax.nn.one_hot(labels, 3), axis=1)

  def run(params, inputs, labels):
    def mean(params):
      return jnp.mean(losses(params, inputs, labels))

    def of_class(params, label):
      member = labels == label
      return jnp.sum(member * losses(params, inputs, labels)) / jnp.maximum(jnp.sum(member), 1)

    # Only these draws are the same under every sharding.
    return numbers(name, params, mean, of_class, key=jax.random.key(0))

  params = jax.device_put(PARAMS, jax.tree.map(sharding_of, PARAMS))
  found, alone = (jax.jit(run)(*a) for a in ((params, inputs, labels), (PARAMS, INPUTS, LABELS)))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-4), found, alone)


@pytest.mark.parametrize("name", DIAGNOSTICS)
def test_bf16_params_are_widened(name):
  narrow = jax.tree.map(lambda x: x.astype(jnp.bfloat16), PARAMS)
  found = jax.eval_shape(lambda params: numbers(name, params), narrow)
  assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {jnp.dtype(jnp.float32)}


def test_bf16_params_give_what_their_values_in_float32_give():
  narrow = jax.tree.map(lambda x: x.astype(jnp.bfloat16), PARAMS)
  widened = jax.tree.map(lambda x: x.astype(jnp.float32), narrow)
  direction = jax.tree.map(jnp.ones_like, widened)
  CLOSE(*(directional_sharpness(loss, params, direction) for params in (narrow, widened)))
  CLOSE(*(worst_case_sharpness(loss, params, KEY, steps=2) for params in (narrow, widened)))


def test_lanczos_vectors_lie_as_the_parameters_do():
  mesh = make_mesh("fsdp=8")
  rows = NamedSharding(mesh, PartitionSpec("fsdp"))
  params = jax.device_put(jnp.ones((4096, 8)), rows)
  run = jax.jit(lambda p: hessian_extremes(lambda w: jnp.sum(w**4), p, KEY, order=16)[:2])
  whole = 16 * 4 * params.size
  assert run.lower(params).compile().memory_analysis().temp_size_in_bytes < whole / 2


BAD = {
  "order must be a whole number of at least 1, got 0": [
    lambda: hessian_spectrum(loss, PARAMS, KEY, order=0),
    lambda: hessian_extremes(loss, PARAMS, KEY, order=0),
    lambda: class_extremes(class_loss, PARAMS, KEY, 3, order=0),
  ],
  "probes must be a whole number of at least 1, got 0": [
    lambda: hessian_spectrum(loss, PARAMS, KEY, probes=0),
    lambda: hessian_trace(loss, PARAMS, KEY, probes=0),
  ],
  "count must be at most 3, the steps of the iteration, got 4": [
    lambda: hessian_extremes(loss, PARAMS, KEY, count=4, order=3),
    lambda: hessian_extremes(jnp.sum, jnp.ones(3), KEY, count=4),
  ],
  "num_classes must be a whole number of at least 1, got 0": [
    lambda: class_extremes(class_loss, PARAMS, KEY, 0)
  ],
  "width must be above 0, got 0": [
    lambda: spectral_density(Spectrum(*3 * [jnp.ones((1, 1))]), jnp.ones(1), 0)
  ],
  "params must hold at least one number": [
    lambda: hessian_trace(loss, {}, KEY),
    lambda: linear_path(loss, {"a": jnp.ones((0, 2))}, {}, [0.0]),
  ],
  "direction must have the structure and shapes of params": [
    lambda: directional_sharpness(loss, PARAMS, {}),
    lambda: filter_normalized(jnp.ones(3), jnp.ones(4)),
  ],
  "end must have the structure": [lambda: linear_path(loss, PARAMS, jnp.ones(3), [0.0])],
  "second must have the structure": [
    lambda: loss_plane(loss, PARAMS, PARAMS, jnp.ones(3), [0.0], [0.0])
  ],
  "fractions must be numbers": [lambda: linear_path(loss, PARAMS, PARAMS, 0.5)],
  "y must be numbers": [lambda: loss_plane(loss, PARAMS, PARAMS, PARAMS, [0.0], [])],
  "rho must be at least 0, got -1": [
    lambda: worst_case_sharpness(loss, PARAMS, KEY, -1),
    lambda: random_sharpness(loss, PARAMS, KEY, -1),
  ],
  "steps must be a whole number of at least 1, got 0": [
    lambda: worst_case_sharpness(loss, PARAMS, KEY, steps=0)
  ],
  "samples must be a whole number of at least 1, got 0": [
    lambda: random_sharpness(loss, PARAMS, KEY, samples=0)
  ],
  "epsilon must be at least 0, got -1": [lambda: module_criticality(loss, PARAMS, epsilon=-1)],
  "epochs must be a whole number of at least 1, got 0": [
    lambda: module_criticality(loss, PARAMS, epochs=0)
  ],
  "learning_rate must be above 0, got 0": [
    lambda: module_criticality(loss, PARAMS, learning_rate=0)
  ],
  "where must match a path among": [lambda: module_criticality(loss, PARAMS, where="conv")],
}


@pytest.mark.parametrize(
  ("message", "call"), [(message, call) for message, calls in BAD.items() for call in calls]
)
def test_bad_arguments(message, call):
  with pytest.raises(ValueError, match=message):
    call()
