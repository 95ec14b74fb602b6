"""Values of optimizers against other libraries, NumPy transcriptions and closed forms."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrl.oracle import Oracle
from optimizers.egn import egn
from optimizers.mirror_maps import entropy, euclidean
from optimizers.optimistic_omd import optimistic_omd
from optimizers.sam import sam
from tests import values


def close(actual, expected, tolerance=1e-5):
  np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)


def run(optimizer, loss, params, steps, **parts):
  """Parameters and losses of a run; `loss(params, step)`, and parts of the Oracle."""

  @jax.jit
  def step(params, state, count):
    value_fn = Oracle(lambda params: loss(params, count), params, **parts)
    value, grad = jax.value_and_grad(value_fn)(params)
    updates, state = optimizer.update(
      grad, state, params, value=value, grad=grad, value_fn=value_fn
    )
    return optax.apply_updates(params, updates), state, value

  state, played, losses = optimizer.init(params), [], []
  for count in range(steps):
    played.append(params)
    params, state, value = step(params, state, count)
    losses.append(value)
  return [*played, params], losses


# sam


def classifier(inputs, labels):
  def loss(params, step):
    del step
    logits = jnp.tanh(inputs @ params["first"] + params["bias"][None]) @ params["second"]
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))

  return loss


def test_sam_is_the_one_of_pytorch_optimizer_for_twenty_five_steps():
  golden = values.load("sam")
  inputs, labels = jnp.asarray(golden["inputs"]), jnp.asarray(golden["labels"])
  start = jax.tree.map(jnp.asarray, golden["start"])
  sgd = optax.sgd(golden["learning_rate"], momentum=golden["momentum"])
  optimizer = optax.chain(sam(rho=golden["rho"]), sgd)
  played, losses = run(optimizer, classifier(inputs, labels), start, len(golden["losses"]))
  close(losses, golden["losses"])
  for name, end in golden["end"].items():
    close(played[-1][name], end, tolerance=1e-4)


def test_sam_is_the_opaque_one_of_optax_for_twenty_steps():
  golden = values.load("sam")
  loss = classifier(jnp.asarray(golden["inputs"]), jnp.asarray(golden["labels"]))
  params = start = jax.tree.map(jnp.asarray, golden["start"])
  ours, _ = run(optax.chain(sam(rho=0.2), optax.adam(0.05)), loss, start, 20)

  ascent = optax.chain(optax.contrib.normalize(), optax.sgd(0.2))
  theirs = optax.contrib.sam(optax.adam(0.05), ascent, opaque_mode=True)
  grad = jax.jit(jax.grad(lambda params: loss(params, 0)))
  state = theirs.init(params)
  for _ in range(20):
    updates, state = theirs.update(
      grad(params), state, params, grad_fn=lambda params, _: grad(params)
    )
    params = optax.apply_updates(params, updates)
  for name, end in params.items():
    close(ours[-1][name], end, tolerance=1e-4)


def test_sam_ends_in_the_limit_cycle_of_a_quadratic():
  curvature, rho, rate = 2.0, 0.5, 0.1
  optimizer = optax.chain(sam(rho=rho), optax.sgd(rate))
  played, _ = run(optimizer, lambda w, _: curvature / 2 * w**2, jnp.array(1.0), 200)
  close(abs(played[-1]), rate * curvature * rho / (2 - rate * curvature))


def test_sam_does_not_move_where_the_gradient_is_zero():
  played, _ = run(optax.chain(sam(), optax.sgd(0.1)), lambda w, _: w**2, jnp.array(0.0), 1)
  assert played[-1] == 0


# optimistic_omd


@pytest.mark.parametrize(("name", "mirror"), [("euclidean", euclidean()), ("entropy", entropy())])
def test_optimistic_omd_is_the_one_of_pynol_for_thirty_rounds(name, mirror):
  golden = values.load("optimistic_omd")
  matrix, targets, steps = (jnp.asarray(golden[key]) for key in ("matrix", "targets", "steps"))
  optimizer = optimistic_omd(lambda count: steps[count], mirror)

  def loss(x, t):
    return jnp.sum((matrix @ x - targets[t]) ** 2) / 2

  played, _ = run(optimizer, loss, jnp.asarray(golden["start"]), len(targets) - 1)
  close(np.array(played), golden[name], tolerance=2e-5)


def test_optimistic_omd_is_that_of_optax_from_the_second_update_on():
  matrix = jnp.asarray(np.random.default_rng(0).normal(size=(4, 4)))

  def loss(x, _):
    return jnp.sum((matrix @ x) ** 2)

  played, _ = run(optimistic_omd(0.01), loss, jnp.ones(4), 20)
  theirs = optax.optimistic_gradient_descent(0.01)
  state = theirs.init(played[0])
  for count, (here, there) in enumerate(itertools.pairwise(played)):
    updates, state = theirs.update(jax.grad(loss)(here, 0), state, here)
    if count > 0:
      close(there - here, updates)


def test_optimistic_omd_on_the_simplex_recovers_from_underflow():
  optimizer = optimistic_omd(1.0, entropy())
  slope = jnp.array([200.0, 0.0])

  def loss(x, t):  # the first outcome is the worst for two rounds, then the best
    return jnp.where(t < 2, 1, -1) * jnp.vdot(slope, x)

  played, _ = run(optimizer, loss, jnp.array([0.75, 0.25]), 8)
  assert played[2][0] == 0
  close(played[-1], [1, 0])
  close([float(jnp.sum(x)) for x in played], np.ones(9))


# egn


def network(params, inputs):
  return np.tanh(inputs @ params[:6].reshape(3, 2)) @ params[6:].reshape(2, 2)


def numerical_jacobian(params, inputs):
  """The Jacobian of all outputs, `[B * C, P]`, by central differences."""
  columns = [
    (network(params + step, inputs) - network(params - step, inputs)).reshape(-1) / 2e-6
    for step in 1e-6 * np.eye(params.size)
  ]
  return np.stack(columns, axis=1)


def softmax(logits):
  weights = np.exp(logits - logits.max(axis=1, keepdims=True))
  return weights / weights.sum(axis=1, keepdims=True)


def squared_error_derivatives(outputs, targets):
  """Gradient and Hessian of mean_i |z_i - y_i|^2 at the outputs."""
  size = len(outputs)
  return 2 / size * (outputs - targets).reshape(-1), 2 / size * np.eye(outputs.size)


def cross_entropy_derivatives(outputs, targets):
  """Gradient and Hessian of mean_i CE(z_i, y_i) at the outputs."""
  size, p = len(outputs), softmax(outputs)
  hessian = np.zeros((outputs.size, outputs.size))
  for i, own in enumerate(p):
    block = slice(2 * i, 2 * i + 2)
    hessian[block, block] = (np.diag(own) - np.outer(own, own)) / size
  return (p - targets).reshape(-1) / size, hessian


LOSSES = {
  "squared_error": (
    squared_error_derivatives,
    lambda z, y: jnp.mean(jnp.sum((z - y) ** 2, axis=1)),
  ),
  "cross_entropy": (
    cross_entropy_derivatives,
    lambda z, y: jnp.mean(optax.softmax_cross_entropy(z, y)),
  ),
}


@pytest.mark.parametrize("name", LOSSES)
def test_egn_is_the_dense_solve_in_parameter_space_for_ten_steps(name):
  derivatives, loss = LOSSES[name]
  rate, damping, rng = 0.7, 0.05, np.random.default_rng(0)
  inputs, start = rng.normal(size=(5, 3)), rng.normal(size=10)
  targets = np.eye(2)[rng.integers(2, size=5)]
  params, expected = start, [start]
  for _ in range(10):
    jacobian = numerical_jacobian(params, inputs)
    gradient, hessian = derivatives(network(params, inputs), targets)
    curvature = jacobian.T @ hessian @ jacobian + damping * np.eye(10)
    params = params - rate * np.linalg.solve(curvature, jacobian.T @ gradient)
    expected.append(params)

  def outputs(w):
    return jnp.tanh(jnp.asarray(inputs) @ w[:6].reshape(3, 2)) @ w[6:].reshape(2, 2)

  def loss_of(z):
    return loss(z, targets)

  played, _ = run(
    egn(rate, damping=damping),
    lambda w, _: loss_of(outputs(w)),
    jnp.asarray(start),
    10,
    outputs=outputs,
    loss_of=loss_of,
  )
  close(np.array(played), np.array(expected), tolerance=2e-4)
