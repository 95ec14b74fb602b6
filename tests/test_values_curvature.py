"""Values of methods by Hessian-vector products: official code, the papers' equations in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrl.oracle import Oracle
from optimizers.dbf_newton import dbf_newton
from optimizers.fosi import fosi
from optimizers.newton_cg import newton_cg
from optimizers.oasis import oasis
from optimizers.saddle_free_newton import saddle_free_newton
from tests import values


def run(optimizer, loss_at, params, steps, watch=lambda state: None):
  """Parameters before the first step and after each, as one tree of stacked arrays.

  The loss of step t is `loss_at(t)`.
  """

  @jax.jit
  def step(params, state, t):
    loss = loss_at(t)
    gradient = jax.grad(loss)(params)
    value_fn = Oracle(loss, params)
    updates, state = optimizer.update(gradient, state, params, value_fn=value_fn)
    return optax.apply_updates(params, updates), state

  state, path = optimizer.init(params), [params]
  for t in range(steps):
    params, state = step(params, state, t)
    path.append(params)
    watch(state)
  return jax.tree.map(lambda *leaves: np.stack(leaves), *path)


def always(loss):
  return lambda t: loss


# fosi


BASES = {
  "average": (optax.adam(0.05), 1.0),
  "heavy_ball": (optax.sgd(0.05, momentum=0.9), 3.0),
  "nesterov": (optax.sgd(0.02, momentum=0.9, nesterov=True), 3.0),
  "none": (optax.sgd(0.1), 3.0),
}


@pytest.mark.parametrize("momentum", BASES)
def test_fosi_is_the_official_one_for_thirty_steps(momentum):
  golden = values.load("fosi")
  expected = golden["runs"][momentum]
  base, clip = BASES[momentum]
  inputs, targets = (jnp.asarray(golden[name]) for name in ("inputs", "targets"))

  def loss(params):
    hidden = jnp.tanh(inputs @ params["first"] + params["bias"][None])
    return jnp.mean((hidden @ params["second"] - targets) ** 2)

  optimizer = fosi(
    *(base, 2, 1), alpha=0.1, every=7, warmup=4, momentum=momentum, lr_clip=clip, order=12
  )
  start = {name: jnp.asarray(expected[name][0]) for name in expected}
  path = run(optimizer, always(loss), start, 30)
  for name in expected:
    np.testing.assert_allclose(path[name], expected[name], rtol=2e-3, atol=2e-3)


def test_fosi_splits_a_quadratic_and_sends_the_steep_part_by_newton():
  curvatures = jnp.asarray(np.concatenate([[1000.0] * 5, np.linspace(1, 0.1, 25)]))
  start = jnp.ones(30)
  optimizer = fosi(optax.sgd(0.9), k=5, alpha=1.0, every=99, warmup=1, momentum="none")
  path = run(optimizer, always(lambda w: 0.5 * jnp.sum(curvatures * w**2)), start, 12)
  np.testing.assert_allclose(path[1:, :5], 0, atol=2e-3)  # SGD alone would multiply them by -899
  slow = 1 - 0.9 * np.asarray(curvatures[5:])
  np.testing.assert_allclose(path[12][5:], slow**12, atol=2e-3)


# oasis


def signs_that_do_not_matter(curvatures):
  """On a diagonal Hessian every vector of signs gives the diagonal."""
  return lambda w: 0.5 * jnp.sum(curvatures * w**2) + jnp.sum(jnp.cos(w))


def oasis_by_hand(gradient, diagonal, w, rate, b2, alpha, steps):
  """The paper's Algorithm 1, given the Hessian's diagonal at each point."""
  path, rates, scale, growth = [w], [], diagonal(w), np.inf
  for k in range(steps):
    if k > 0:
      scale = b2 * scale + (1 - b2) * diagonal(w)
    hat = np.maximum(np.abs(scale), alpha)
    if k > 0:
      away, turn = w - path[-2], gradient(w, k) - gradient(path[-2], k)
      bound = 0.5 * np.sqrt(np.sum(hat * away**2)) / np.sqrt(np.sum(turn**2 / hat))
      new = min(np.sqrt(1 + growth) * rate, bound)
      growth, rate = new / rate, new
    w = w - rate * gradient(w, k) / hat
    path.append(w)
    rates.append(rate)
  return np.stack(path), rates


def test_oasis_is_its_algorithm_for_thirty_steps_on_batches_that_differ():
  rng = np.random.default_rng(0)
  curvatures, shifts = rng.uniform(0.5, 30, size=6), rng.normal(size=(30, 6))
  start = rng.normal(size=6)
  expected, rates = oasis_by_hand(
    lambda w, k: curvatures * (w - 0.1 * shifts[k]) - np.sin(w),
    lambda w: curvatures - np.cos(w),
    *(start, 0.01, 0.9, 2.0, 30),
  )
  got = []
  with jax.enable_x64(True):
    c, s = jnp.asarray(curvatures), jnp.asarray(shifts)
    path = run(
      oasis(0.01, b2=0.9, alpha=2.0, warm_start=3),
      lambda t: lambda w: 0.5 * jnp.sum(c * (w - 0.1 * s[t]) ** 2) + jnp.sum(jnp.cos(w)),
      jnp.asarray(start),
      30,
      watch=lambda state: got.append(float(state.metrics["step_size"])),
    )
  np.testing.assert_allclose(got, rates, rtol=1e-9)
  np.testing.assert_allclose(path, expected, rtol=1e-9, atol=1e-9)
  ratios = np.array(rates[1:]) / rates[:-1]
  assert max(ratios) > 1 > min(ratios)


def test_oasis_with_a_fixed_rate_averages_gradients_and_curvatures_from_zero():
  rng = np.random.default_rng(1)
  curvatures, w = rng.uniform(0.5, 3, size=5), rng.normal(size=5)
  path, scale, mean = [w], np.zeros(5), np.zeros(5)
  for t in range(1, 21):
    scale = 0.95 * scale + 0.05 * (curvatures - np.cos(w))
    mean = 0.9 * mean + 0.1 * (curvatures * w - np.sin(w))
    w = w - 0.02 * mean / (1 - 0.9**t) / np.maximum(np.abs(scale), 0.3)
    path.append(w)
  with jax.enable_x64(True):
    optimizer = oasis(0.02, adaptive=False, b1=0.9, b2=0.95, alpha=0.3, warm_start=0)
    c = jnp.asarray(curvatures)
    actual = run(optimizer, always(signs_that_do_not_matter(c)), jnp.asarray(path[0]), 20)
  np.testing.assert_allclose(actual, np.stack(path), rtol=1e-9, atol=1e-9)


def test_oasis_estimates_the_diagonal_of_a_full_hessian():
  rng = np.random.default_rng(2)
  factor = rng.normal(size=(4, 4))
  hessian = factor @ factor.T + np.eye(4)
  optimizer = oasis(1.0, warm_start=3000)
  w = jnp.asarray(rng.normal(size=4))
  loss = lambda w: 0.5 * w @ jnp.asarray(hessian, w.dtype) @ w  # noqa: E731
  _, state = jax.jit(
    lambda g, s, w: optimizer.update(g, s, w, value_fn=loss)
  )(jax.grad(loss)(w), optimizer.init(w), w)  # fmt: skip
  np.testing.assert_allclose(state.diagonal, np.diag(hessian), rtol=0.1)


# newton_cg


def newton_cg_by_hand(value, gradient, hessian, w, steps, most, damping=0.0):
  """Nocedal and Wright's Algorithm 7.1 with Armijo's rule, and at most so many inner steps."""
  path = [w]
  for _ in range(steps):
    g, h = gradient(w), hessian(w) + damping * np.eye(len(w))
    z, r = np.zeros_like(w), g
    d = -r
    goal = min(0.5, np.sqrt(np.linalg.norm(g))) * np.linalg.norm(g)
    for j in range(most):
      if d @ h @ d <= 0:
        z = -g if j == 0 else z
        break
      a = r @ r / (d @ h @ d)
      z, new = z + a * d, r + a * h @ d
      if np.linalg.norm(new) <= goal:
        break
      d, r = -new + (new @ new) / (r @ r) * d, new
    rate = 1.0
    while value(w + rate * z) > value(w) + 1e-4 * rate * g @ z:
      rate /= 2
    w = w + rate * z
    path.append(w)
  return np.stack(path)


@pytest.mark.parametrize("damping", [0.0, 0.5])
def test_newton_cg_is_the_textbooks_for_twenty_steps(damping):
  rng = np.random.default_rng(4)
  mix = rng.normal(size=(5, 5))
  start = 2 * rng.normal(size=5)

  def value(w):
    return np.sum(0.1 * w**4 - w**2) + 0.3 * np.sum(np.cos(mix @ w)) + 0.05 * np.sum(w)

  def gradient(w):
    return 0.4 * w**3 - 2 * w - 0.3 * mix.T @ np.sin(mix @ w) + 0.05

  def hessian(w):
    return np.diag(1.2 * w**2 - 2) - 0.3 * mix.T @ np.diag(np.cos(mix @ w)) @ mix

  assert np.linalg.eigvalsh(hessian(0.1 * start))[0] < 0
  expected = newton_cg_by_hand(value, gradient, hessian, 0.1 * start, 20, 3, damping)
  with jax.enable_x64(True):
    m = jnp.asarray(mix)

    def loss(w):
      return jnp.sum(0.1 * w**4 - w**2) + 0.3 * jnp.sum(jnp.cos(m @ w)) + 0.05 * jnp.sum(w)

    path = run(newton_cg(cg_steps=3, damping=damping), always(loss), jnp.asarray(0.1 * start), 20)
  np.testing.assert_allclose(path, expected, rtol=1e-6, atol=1e-6)


def test_newton_cg_takes_the_curvature_of_a_slice():
  halves = jnp.array([[4.0, 1.0], [2.0, 7.0]])

  def of_slice(w, index, slices):
    return 0.5 * jnp.sum(halves[index] * w**2)

  def whole(w):
    return jnp.mean(jnp.stack([of_slice(w, i, 2) for i in range(2)]))

  w = jnp.array([1.0, -2.0])
  optimizer = newton_cg(tolerance=1e-6, curvature_slices=2)
  value_fn = Oracle(whole, w, of_slice=of_slice)
  updates, _ = optimizer.update(jax.grad(whole)(w), optimizer.init(w), w, value_fn=value_fn)
  # A step by the whole gradient and the first half's Hessian, cut until it promises a decrease.
  full = -np.array([3.0, -8.0]) / [4.0, 1.0]
  ratio = np.asarray(updates) / full
  np.testing.assert_allclose(ratio, ratio[0], rtol=1e-5)
  assert np.isclose(ratio[0], [0.5, 0.25], rtol=1e-5).any()


# saddle_free_newton


def test_saddle_free_newton_is_the_dense_step_on_the_whole_space_for_twenty_steps():
  rng = np.random.default_rng(5)
  mix = rng.normal(size=(4, 4))
  dampings = (1.0, 0.1, 0.01, 0.001)

  def value(w):
    return np.sum(0.1 * w**4 - w**2) + 0.3 * np.sum(np.cos(mix @ w))

  w = 0.1 * rng.normal(size=4)
  path, chosen = [w], []
  for _ in range(20):
    g = 0.4 * w**3 - 2 * w - 0.3 * mix.T @ np.sin(mix @ w)
    h = np.diag(1.2 * w**2 - 2) - 0.3 * mix.T @ np.diag(np.cos(mix @ w)) @ mix
    eigenvalues, u = np.linalg.eigh(h)
    steps = [-u @ ((u.T @ g) / (np.abs(eigenvalues) + lam)) for lam in dampings]
    best = int(np.argmin([value(w + step) for step in steps]))
    w = w + steps[best]
    chosen.append(dampings[best])
    path.append(w)
  got = []
  with jax.enable_x64(True):
    m = jnp.asarray(mix)
    actual = run(
      saddle_free_newton(krylov_dim=9, damping=dampings),
      always(lambda w: jnp.sum(0.1 * w**4 - w**2) + 0.3 * jnp.sum(jnp.cos(m @ w))),
      jnp.asarray(path[0]),
      20,
      watch=lambda state: got.append(float(state.metrics["damping"])),
    )
  np.testing.assert_allclose(actual, np.stack(path), rtol=1e-6, atol=1e-6)
  np.testing.assert_allclose(got[:5], chosen[:5])  # later ones differ by rounding alone
  assert len(set(chosen[:5])) > 1


def test_saddle_free_newton_on_a_krylov_space_is_the_projected_step():
  rng = np.random.default_rng(6)
  factor = rng.normal(size=(9, 9))
  hessian, g = (factor + factor.T) / 2, rng.normal(size=9)
  w, last = np.zeros(9), None
  path = [w]
  for _ in range(3):
    gradient = hessian @ w + g + w**3
    curved = hessian + np.diag(3 * w**2)
    krylov = [gradient, curved @ gradient, curved @ curved @ gradient]
    if last is not None:
      krylov.append(last)
    basis = np.linalg.qr(np.stack(krylov, axis=1))[0]
    eigenvalues, u = np.linalg.eigh(basis.T @ curved @ basis)
    vectors = basis @ u
    last = -vectors @ ((vectors.T @ gradient) / (np.abs(eigenvalues) + 0.5))
    w = w + last
    path.append(w)
  with jax.enable_x64(True):
    h, linear = jnp.asarray(hessian), jnp.asarray(g)
    actual = run(
      saddle_free_newton(krylov_dim=3, damping=(0.5,)),
      always(lambda w: 0.5 * w @ h @ w + linear @ w + jnp.sum(w**4) / 4),
      jnp.zeros(9),
      3,
    )
  np.testing.assert_allclose(actual, np.stack(path), rtol=1e-7, atol=1e-7)


# dbf_newton


def filtered_newton_by_hand(values, gradients, hessians, w, alpha, beta):
  """The paper's filter with plain inverses, and its line search; how often the test passed."""
  eye, inv = np.eye(len(w)), np.linalg.inv
  s = beta / (1 - alpha**2) * eye
  path, passed, mean, covariance = [w], 0, None, None
  for value, gradient, hessian in zip(values, gradients, hessians, strict=True):
    g, q = gradient(w), hessian
    if mean is None:
      mean, covariance = g, q
    else:
      drifted, m = alpha * mean, alpha**2 * covariance + beta * eye
      sure = np.all(np.linalg.eigvalsh(inv(q) - inv(s)) > 1e-6)
      passed += sure
      q = q if sure else inv(inv(q) + inv(s))
      covariance = inv(inv(m) + inv(q) - inv(s))
      mean = covariance @ (inv(m) @ drifted + inv(q) @ g)
    direction = -np.linalg.solve(covariance + 1e-12 * eye, mean)
    for k in range(5):
      if value(w + 2**-k * direction) - value(w) <= 0.95 * 2**-k * g @ direction:
        break
    w = w + 2**-k * direction
    path.append(w)
  return np.stack(path), passed


def test_dbf_newton_is_the_papers_filter_for_twenty_five_steps():
  rng = np.random.default_rng(7)
  x = rng.normal(size=(25, 5, 3)) * rng.uniform(0.4, 1.2, size=(25, 1, 1))
  y = x @ np.ones(3) + rng.normal(size=(25, 5))
  hessians = np.einsum("tbi,tbj->tij", x, x) / 5
  values = [lambda w, t=t: np.mean((y[t] - x[t] @ w) ** 2) / 2 for t in range(25)]
  gradients = [lambda w, t=t: x[t].T @ (x[t] @ w - y[t]) / 5 for t in range(25)]
  start = rng.normal(size=3)
  expected, passed = filtered_newton_by_hand(values, gradients, hessians, start, 0.9, 0.2)
  assert 0 < passed < 24  # both ways of the definiteness test
  with jax.enable_x64(True):
    inputs, targets = jnp.asarray(x), jnp.asarray(y)
    path = run(
      dbf_newton(alpha=0.9, beta=0.2),
      lambda t: lambda w: jnp.mean((targets[t] - inputs[t] @ w) ** 2) / 2,
      jnp.asarray(start),
      25,
    )
  np.testing.assert_allclose(path, expected, rtol=1e-6, atol=1e-6)


def test_dbf_newton_refuses_what_is_too_large_for_a_matrix():
  with pytest.raises(ValueError, match="max_parameters=10, got 12; newton_cg and"):
    dbf_newton(max_parameters=10).init(jnp.zeros((3, 4)))
