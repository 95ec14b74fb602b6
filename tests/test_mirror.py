"""Projections and mirror maps: their points are the minimisers that they are said to be."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from optimizers.frank_wolfe import frank_wolfe
from optimizers.mirror_descent import mirror_descent
from optimizers.mirror_maps import entropy, euclidean, mahalanobis, p_norm
from optimizers.optimistic_omd import optimistic_ensemble, optimistic_omd, optimistic_ons
from optimizers.projections import box, l1_ball, l2_ball, nearest_in_norm, non_negative, simplex

SIZE = 4
DOMAINS = {
  "l2_ball": (l2_ball(0.8), [lambda x: 0.8**2 - x @ x]),
  "l1_ball": (l1_ball(0.8), [lambda x: 0.8 - np.abs(x).sum()]),
  "box": (box(-0.3, 0.5), [lambda x: x + 0.3, lambda x: 0.5 - x]),
  "simplex": (simplex(), [lambda x: x, lambda x: x.sum() - 1, lambda x: 1 - x.sum()]),
  "non_negative": (non_negative(), [lambda x: x]),
}
BOUNDED = sorted(set(DOMAINS) - {"non_negative"})


def random_matrix(seed=0):
  """A positive definite one, with condition number 30 or so."""
  factor = np.random.default_rng(seed).normal(size=(SIZE, SIZE))
  return factor @ factor.T + 0.3 * np.eye(SIZE)


def quadratic_minimiser(matrix, linear, constraints, start):
  """min 0.5 x^T A x - b^T x, by scipy."""
  found = scipy.optimize.minimize(
    lambda x: 0.5 * x @ matrix @ x - linear @ x,
    start,
    jac=lambda x: matrix @ x - linear,
    constraints=[{"type": "ineq", "fun": constraint} for constraint in constraints],
    method="SLSQP",
    options={"ftol": 1e-14, "maxiter": 500},
  )
  return found.x


@pytest.mark.parametrize("name", sorted(DOMAINS))
def test_projections_are_nearest_in_the_euclidean_and_in_other_norms(name):
  projection, constraints = DOMAINS[name]
  matrix = random_matrix()
  eigenvalues = np.linalg.eigvalsh(matrix)
  with jax.enable_x64(True):
    search = jax.jit(
      lambda x, h: nearest_in_norm(projection, x, lambda v: h @ v, eigenvalues[0], eigenvalues[-1])
    )
    nearest = jax.jit(projection.nearest)
    for point in np.random.default_rng(1).normal(size=(4, SIZE)):
      plain = nearest(jnp.asarray(point))
      expected = quadratic_minimiser(np.eye(SIZE), point, constraints, np.asarray(plain))
      np.testing.assert_allclose(plain, expected, atol=1e-6)
      warped = search(jnp.asarray(point), jnp.asarray(matrix))
      expected = quadratic_minimiser(matrix, matrix @ point, constraints, np.asarray(plain))
      np.testing.assert_allclose(warped, expected, atol=5e-5)  # scipy's digits at corners
      np.testing.assert_allclose(search(plain, jnp.asarray(matrix)), plain, atol=1e-12)


def test_nearest_in_norm_on_a_ball_solves_the_secular_equation():
  matrix, radius = random_matrix(3), 0.8
  eigenvalues = np.linalg.eigvalsh(matrix)
  point = np.array([1.0, -2.0, 0.5, 3.0])

  def at(multiplier):
    return np.linalg.solve(matrix + multiplier * np.eye(SIZE), matrix @ point)

  root = scipy.optimize.brentq(lambda m: np.linalg.norm(at(m)) - radius, 0, 1e4, xtol=1e-14)
  with jax.enable_x64(True):
    h = jnp.asarray(matrix)
    found = nearest_in_norm(
      l2_ball(radius), jnp.asarray(point), lambda v: h @ v, eigenvalues[0], eigenvalues[-1]
    )
  np.testing.assert_allclose(found, at(root), rtol=1e-10)


@pytest.mark.parametrize("name", BOUNDED)
def test_lowest_points_are_in_the_domain_and_below_all_others(name):
  projection, _ = DOMAINS[name]
  rng = np.random.default_rng(0)
  nearest, lowest = (jax.jit(jax.vmap(function)) for function in projection)
  inside = np.asarray(nearest(jnp.asarray(3 * rng.normal(size=(200, SIZE)), jnp.float32)))
  directions = np.append(rng.normal(size=(5, SIZE)), np.zeros((1, SIZE)), axis=0)
  vertices = lowest(jnp.asarray(directions, jnp.float32))
  np.testing.assert_allclose(nearest(vertices), vertices, atol=1e-6)
  products = np.sum(directions * np.asarray(vertices), axis=1, keepdims=True)
  assert np.all(products <= directions @ inside.T + 1e-6)


def test_domains_of_all_parameters_together_see_the_whole_tree():
  tree = {"a": jnp.array([3.0, 0.0]), "b": jnp.array(-4.0)}
  ball, polytope = l2_ball(1.0), l1_ball(1.0)

  @jax.jit
  def points(tree):
    return ball.nearest(tree), polytope.nearest(tree), polytope.lowest(tree)

  round_one, flat_one, vertex = points(tree)
  np.testing.assert_allclose(round_one["b"], -0.8, rtol=1e-6)
  np.testing.assert_allclose(flat_one["a"], [0, 0], atol=1e-6)
  assert vertex["b"] == 1 and not np.any(vertex["a"])
  rows = jax.jit(simplex().nearest)(jnp.array([[0.2, 0.8], [3.0, 0.0]]))
  np.testing.assert_allclose(rows, [[0.2, 0.8], [1, 0]], atol=1e-6)


def test_bounds_may_be_trees():
  bounds = {"a": jnp.array([0.0, 1.0]), "b": jnp.array(-1.0)}
  tree = {"a": jnp.array([-1.0, 3.0]), "b": jnp.array(-4.0)}
  nearest = box(bounds, 2.0).nearest(tree)
  np.testing.assert_array_equal(nearest["a"], [0, 2])
  assert nearest["b"] == -1


def divergence_step(mirror, psi, start, direction, constraints=()):
  """argmin <d, x> + B_psi(x, p) by scipy, from the definition of the divergence."""
  _, slope = jax.value_and_grad(psi)(start)

  def objective(x):
    return psi(x) + (direction - slope) @ x

  compiled = jax.jit(jax.value_and_grad(objective))
  found = scipy.optimize.minimize(
    lambda x: tuple(np.asarray(part) for part in compiled(x)),
    np.asarray(start),
    jac=True,
    constraints=[{"type": "ineq", "fun": constraint} for constraint in constraints],
    method="SLSQP",
    options={"ftol": 1e-15, "maxiter": 500},
  )
  return found.x


MATRIX = random_matrix(5)
MAPS = {
  "euclidean": (euclidean(), lambda x: x @ x / 2, []),
  "p_norm": (p_norm(1.4), lambda x: jnp.sum(jnp.abs(x) ** 1.4) ** (2 / 1.4) / 2, []),
  "p_norm ball": (
    p_norm(1.4, radius=1.2),
    lambda x: jnp.sum(jnp.abs(x) ** 1.4) ** (2 / 1.4) / 2,
    [lambda x: 1.2**1.4 - np.sum(np.abs(x) ** 1.4)],
  ),
  "number": (
    mahalanobis(3.0, l1_ball(1.5)),
    lambda x: 3 * x @ x / 2,
    [lambda x: 1.5 - np.abs(x).sum()],
  ),
  "diagonal": (
    mahalanobis([1.0, 2.0, 3.0, 0.5]),
    lambda x: x * jnp.array([1.0, 2.0, 3.0, 0.5]) @ x / 2,
    [],
  ),
  "matrix": (mahalanobis(MATRIX), lambda x: x @ MATRIX @ x / 2, []),
  "matrix, box": (
    mahalanobis(MATRIX, box(-0.3, 0.5)),
    lambda x: x @ MATRIX @ x / 2,
    DOMAINS["box"][1],
  ),
  "entropy": (
    entropy(),
    lambda x: jnp.sum(x * jnp.log(x)),
    [lambda x: x - 1e-9, lambda x: x.sum() - 1, lambda x: 1 - x.sum()],
  ),
}


@pytest.mark.parametrize("name", sorted(MAPS))
def test_steps_of_mirror_maps_minimise_the_linear_loss_plus_the_divergence(name):
  mirror, psi, constraints = MAPS[name]
  rng = np.random.default_rng(0)
  with jax.enable_x64(True):
    start = rng.dirichlet(np.ones(SIZE)) if name == "entropy" else 0.1 * rng.normal(size=SIZE)
    for direction in rng.normal(size=(2, SIZE)):
      step = mirror.params(mirror.step(mirror.point(jnp.asarray(start)), jnp.asarray(direction)))
      expected = divergence_step(mirror, psi, jnp.asarray(start), direction, constraints)
      np.testing.assert_allclose(step, expected, atol=2e-6)


@pytest.mark.parametrize("name", sorted(MAPS))
def test_points_stand_for_the_parameters(name):
  mirror, _, _ = MAPS[name]
  params = jnp.asarray([0.2, 0.1, 0.3, 0.4])
  np.testing.assert_allclose(mirror.params(mirror.point(params)), params, rtol=1e-6)


@pytest.mark.parametrize("name", sorted(MAPS))
def test_the_dual_norm_bounds_how_far_a_step_goes_in_the_divergence(name):
  # psi 1-strongly convex in a norm: B(x, x') + B(x', x) <= |d|_*^2 for the step x' along d
  mirror, psi, _ = MAPS[name]
  slope = jax.grad(psi)
  rng = np.random.default_rng(2)
  for scale in (0.01, 0.3):
    start = jnp.asarray(rng.dirichlet(np.ones(SIZE)) * 0.4 + 0.15)
    start = start if name in ("entropy", "p_norm ball") else 0.4 * start
    direction = jnp.asarray(scale * rng.normal(size=SIZE))
    new = mirror.params(mirror.step(mirror.point(start), direction))
    old = mirror.params(mirror.point(start))
    both_ways = (slope(new) - slope(old)) @ (new - old)
    assert 0 < both_ways <= 1.0001 * mirror.norm(direction) ** 2


def test_the_dual_norm_of_a_matrix_is_that_of_its_inverse():
  direction = np.array([1.0, -2.0, 0.5, 3.0])
  expected = np.sqrt(direction @ np.linalg.solve(MATRIX, direction))
  np.testing.assert_allclose(mahalanobis(MATRIX).norm(jnp.asarray(direction)), expected, rtol=1e-5)
  np.testing.assert_allclose(
    p_norm(1.4).norm(jnp.asarray(direction)),
    np.sum(np.abs(direction) ** 3.5) ** (1 / 3.5) / np.sqrt(0.4),
    rtol=1e-5,
  )
  rows = {"a": jnp.array([[3.0, -1.0], [0.0, -4.0]]), "b": jnp.array(12.0)}
  np.testing.assert_allclose(entropy().norm(rows), 13, rtol=1e-6)


def outside():
  return {"a": jnp.array([-1.0, 3.0])}


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (
      lambda: optimistic_omd(0.1, entropy()).init(jnp.array([0.0, 1.0])),
      "params of the entropy map must be positive, got a minimum of 0.0",
    ),
    (
      lambda: mirror_descent(0.1, entropy()).init(jnp.array([-0.5, 1.5])),
      "params of the entropy map must be positive, got a minimum of -0.5",
    ),
    (
      lambda: mirror_descent(0.1, euclidean(box({"b": jnp.zeros(2)}, 1.0))).init(outside()),
      "lower must be a number or fit the parameters",
    ),
    (
      lambda: mirror_descent(0.1, euclidean(box(0.0, {"a": jnp.zeros(3)}))).init(outside()),
      "upper must be a number or fit the parameters, PyTreeDef({'a': *}) of shapes [(2,)]",
    ),
    (
      lambda: frank_wolfe(domain=box(0.0, {"b": jnp.zeros(2)})).update(
        outside(), frank_wolfe(domain=box()).init(outside()), outside()
      ),
      "upper must be a number or fit the parameters",
    ),
    (
      lambda: mirror_descent(0.1, mahalanobis([1.0, 2.0, 3.0])).update(
        outside(), mirror_descent(0.1).init(outside()), outside()
      ),
      "matrix must be of the 2 parameters, got (3,)",
    ),
    (
      lambda: mahalanobis(np.ones((2, 2, 2))),
      "matrix must be a number, a vector or a matrix, got shape (2, 2, 2)",
    ),
    (
      lambda: optimistic_ons(diameter=1.0, bound=1.0, max_size=3).init(jnp.zeros(4)),
      "at most max_size=3 of them, got 4: optimistic_omd needs none",
    ),
    (
      lambda: optimistic_omd(0.1, hint="external").update(
        outside(), optimistic_omd(0.1).init(outside()), outside()
      ),
      "optimistic_omd with hint='external' needs update(..., hint=m)",
    ),
    (
      lambda: optimistic_ensemble(diameter=jnp.ones(()), bound=1.0, smoothness=1.0, steps=9),
      "bases must be given where diameter, bound or smoothness are no plain numbers",
    ),
  ],
)
def test_what_does_not_fit_says_so(call, message):
  with pytest.raises(ValueError) as error:
    call()
  assert message in str(error.value)
