"""Values of GAM: against the official code's, and NumPy with Hessians by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optimizers.gam import gam, gam_exact, gam_sam
from tests import values

RATE = 0.1


def run(optimizer, loss, params, steps):
  """Losses of a run, and the parameters after each of its steps."""

  @jax.jit
  def step(params, state):
    value, grad = jax.value_and_grad(loss)(params)
    updates, state = optimizer.update(grad, state, params, value_fn=loss)
    return optax.apply_updates(params, updates), state, value

  state, losses, played = optimizer.init(params), [], []
  for _ in range(steps):
    params, state, value = step(params, state)
    losses.append(value)
    played.append(params)
  return losses, played


# gam


def official_run(golden, element, dtype):
  """Losses and last parameters of the run that the golden values are of."""
  inputs, labels = jnp.asarray(golden["inputs"], dtype), jnp.asarray(golden["labels"])

  def loss(params):
    hidden = jnp.tanh(inputs @ params["first"] + params["bias"][None])
    logits = hidden @ params["second"]
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))

  sgd = optax.sgd(golden["learning_rate"], momentum=golden["momentum"])
  optimizer = optax.chain(element, optax.add_decayed_weights(golden["decay"]), sgd)
  start = jax.tree.map(lambda x: jnp.asarray(x, dtype), golden["start"])
  losses, played = run(optimizer, loss, start, len(golden["plain"]["losses"]))
  return losses, played[-1]


@pytest.mark.parametrize(
  ("dtype", "tolerance"), [(jnp.float32, 1e-5), (jnp.float64, 1e-8)], ids=["float32", "float64"]
)
@pytest.mark.parametrize(
  ("name", "options"),
  [("plain", {}), ("adaptive", {"adaptive": True}), ("paper", {"h_minus": "paper"})],
)
def test_gam_is_the_official_one_for_twenty_five_steps(name, options, dtype, tolerance):
  golden = values.load("gam")
  expected = golden[name]
  steps = len(expected["losses"])

  def radius(highest, lowest):
    return optax.linear_schedule(highest, lowest, steps) if name == "adaptive" else highest

  coefficients = {key: golden[key] for key in ("alpha", "beta", "gamma")}
  with jax.enable_x64(dtype == jnp.float64):
    element = gam(radius(*golden["rho"]), radius(*golden["rho_prime"]), **coefficients, **options)
    losses, end = official_run(golden, element, dtype)
  np.testing.assert_allclose(losses, expected["losses"], rtol=tolerance, atol=tolerance)
  for key, param in end.items():
    np.testing.assert_allclose(param, expected["end"][key], rtol=tolerance, atol=tolerance)


def test_gam_on_a_quadratic_by_hand():
  curvature, point = np.diag([1.0, 4.0]), np.array([3.0, 1.0])  # its gradient: (3, 4), of norm 5
  element = gam(rho=0.5, rho_prime=0.25, alpha=0.25, beta=0.75, gamma=2.0)

  def loss(w):
    return w @ jnp.asarray(curvature, jnp.float32) @ w / 2

  start = jnp.asarray(point, jnp.float32)
  updates, _ = element.update(jax.grad(loss)(start), element.init(start), start, value_fn=loss)
  g0 = curvature @ point
  g1 = curvature @ (point + 0.25 * g0 / 5)
  second = point + 0.5 * (curvature @ g0) / np.hypot(3, 16)  # g1 - g0 is along (3, 16)
  g2 = curvature @ second
  g3 = curvature @ (second + 0.25 * g2 / np.linalg.norm(g2))
  plus, minus = 0.25 * g1 + 0.75 * g3, g0 + 0.25 * g2
  rotated = np.array([-plus[1], plus[0]]) / np.linalg.norm(plus)
  np.testing.assert_allclose(updates, plus - 2 * (minus @ rotated) * rotated, rtol=1e-5)


# gam_exact, gam_sam


class Problem:
  """mean log cosh(X w - y) + sum w^4 / 20, with its gradient and its Hessian."""

  def __init__(self):
    rng = np.random.default_rng(0)
    self.inputs, self.targets = rng.normal(size=(7, 5)), 2 * rng.normal(size=7)
    self.start = rng.normal(size=5)

  def loss(self, params):
    point = jnp.concatenate([params["head"], params["tail"]])
    residuals = jnp.asarray(self.inputs) @ point - jnp.asarray(self.targets)
    return jnp.mean(jnp.log(jnp.cosh(residuals))) + jnp.sum(point**4) / 20

  def gradient(self, point):
    slopes = np.tanh(self.inputs @ point - self.targets)
    return self.inputs.T @ slopes / len(slopes) + point**3 / 5

  def hessian(self, point):
    slopes = np.tanh(self.inputs @ point - self.targets)
    curvature = self.inputs.T @ np.diag(1 - slopes**2) @ self.inputs / len(slopes)
    return curvature + np.diag(3 * point**2 / 5)

  def flatness_gradient(self, point, rho):
    """Equations 7 and 8 of the paper, the Hessians written out."""
    gradient = self.gradient(point)
    growth = self.hessian(point) @ gradient / np.linalg.norm(gradient)
    worst = point + rho * growth / np.linalg.norm(growth)
    gradient = self.gradient(worst)
    return rho * self.hessian(worst) @ gradient / np.linalg.norm(gradient)


def assert_descends_by(element, direction):
  """Twenty steps of the element are those by `direction(problem, point, step)`."""
  problem, expected = Problem(), []
  point = problem.start
  for step in range(20):
    point = point - RATE * direction(problem, point, step)
    expected.append(point)
  start = {"head": jnp.asarray(problem.start[:2]), "tail": jnp.asarray(problem.start[2:])}
  _, played = run(optax.chain(element, optax.sgd(RATE)), problem.loss, start, 20)
  actual = [np.concatenate([params["head"], params["tail"]]) for params in played]
  np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


def test_gam_exact_is_the_papers_equations_with_dense_hessians_for_twenty_steps():
  def direction(problem, point, step):
    rho = 0.5 / (1 + step)
    return problem.gradient(point) + 0.7 * problem.flatness_gradient(point, rho)

  assert_descends_by(gam_exact(lambda count: 0.5 / (1 + count), alpha=0.7), direction)


def test_gam_sam_adds_the_flatness_to_sams_gradient_for_twenty_steps():
  def direction(problem, point, step):
    del step
    gradient = problem.gradient(point)
    uphill = point + 0.2 * gradient / np.linalg.norm(gradient)
    return problem.gradient(uphill) + 0.7 * problem.flatness_gradient(point, 0.4)

  assert_descends_by(gam_sam(rho=0.4, alpha=0.7, rho_sam=0.2), direction)
