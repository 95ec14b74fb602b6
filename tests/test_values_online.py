"""Values of online optimizers in float64, over many rounds, and against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optimizers.mirror_maps import entropy, euclidean
from optimizers.optimistic_omd import optimistic_omd
from tests import values


def decisions(optimizer, gradient, start, rounds):
  """The decisions x_1, ..., x_{rounds + 1} on losses of the given `gradient(x, round)`."""

  @jax.jit
  def play(params, state, count):
    updates, state = optimizer.update(gradient(params, count), state, params)
    return optax.apply_updates(params, updates), state

  params, state = start, optimizer.init(start)
  played = [params]
  for count in range(rounds):
    params, state = play(params, state, count)
    played.append(params)
  return np.array(played), state


@pytest.mark.parametrize(("name", "mirror"), [("euclidean", euclidean()), ("entropy", entropy())])
def test_optimistic_omd_is_the_one_of_pynol_to_twelve_digits(name, mirror):
  golden = values.load("optimistic_omd")
  with jax.enable_x64(True):
    matrix, targets, steps = (jnp.asarray(golden[key]) for key in ("matrix", "targets", "steps"))

    def gradient(x, count):
      return matrix.T @ (matrix @ x - targets[count])

    optimizer = optimistic_omd(lambda count: steps[count], mirror)
    played, _ = decisions(optimizer, gradient, jnp.asarray(golden["start"]), len(targets) - 1)
  assert played.dtype == np.float64
  assert np.ptp(played, axis=0).min() > 1e-2
  np.testing.assert_allclose(played, golden[name], rtol=1e-12)


def solved_recursion(a, eta, start, rounds):
  """z_{t+1} = (1 - 2 eta a) z_t + eta a z_{t-1}, where the first hint is 0, by its roots."""
  middle, root = 1 - 2 * eta * a, np.sqrt(1 + 4 * (eta * a) ** 2 + 0j)
  first, second = (middle + root) / 2, (middle - root) / 2
  share = (middle - second) / root
  t = np.arange(rounds + 1)
  return start * (share * first**t + (1 - share) * second**t)


@pytest.mark.parametrize(("eta", "shrinks"), [(0.1, True), (0.4, True), (0.7, False)])
def test_optimistic_omd_plays_a_bilinear_game_as_its_recursion_says(eta, shrinks):
  # min over x, max over y of x y: with z = x + i y the players' gradients are -i z
  expected = solved_recursion(-1j, eta, 0.8 + 0.6j, 40)
  assert (abs(expected[-1]) < 0.9) == shrinks
  played, _ = decisions(
    optimistic_omd(eta), lambda z, _: jnp.array([z[1], -z[0]]), jnp.array([0.8, 0.6]), 40
  )
  scale = abs(expected).max()
  np.testing.assert_allclose(played[:, 0], expected.real, atol=1e-5 * scale)
  np.testing.assert_allclose(played[:, 1], expected.imag, atol=1e-5 * scale)


def test_optimistic_omd_on_a_parabola_is_its_recursion_from_the_first_round_on():
  expected = solved_recursion(3.0, 0.05, 2.0, 30)
  np.testing.assert_allclose(expected[1], 2 - 2 * 0.05 * 3 * 2)
  played, _ = decisions(optimistic_omd(0.05), lambda x, _: 3 * x, jnp.array(2.0), 30)
  np.testing.assert_allclose(played, expected.real, rtol=1e-5)


def test_optimistic_omd_on_the_simplex_weighs_all_losses_and_the_last_one_twice():
  rng = np.random.default_rng(0)
  losses = rng.normal(size=(25, 3, 4))
  etas = 2 / np.sqrt(1 + np.arange(26))
  start = rng.dirichlet(np.ones(4), size=3)
  summed = np.cumsum(etas[:-1, None, None] * losses, axis=0) + etas[1:, None, None] * losses
  expected = start * np.exp(-summed)
  expected /= expected.sum(axis=-1, keepdims=True)

  steps, slopes = jnp.asarray(etas), jnp.asarray(losses)
  optimizer = optimistic_omd(lambda count: steps[count], entropy())
  played, _ = decisions(optimizer, lambda _, count: slopes[count], jnp.asarray(start), 25)
  np.testing.assert_allclose(played[1:], expected, rtol=2e-5)


def test_optimistic_omd_keeps_its_secondary_point_in_float32_where_params_are_bfloat16():
  slope = 2.0**-11  # an eighth of the spacing of bfloat16 just below 1
  start = jnp.ones((2,), jnp.bfloat16)
  played, state = decisions(
    optimistic_omd(1.0), lambda x, _: jnp.full_like(x, slope), start, rounds=100
  )
  assert played.dtype == jnp.bfloat16
  assert state.secondary.dtype == jnp.float32
  np.testing.assert_array_equal(state.secondary, 1 - 100 * slope)
  np.testing.assert_allclose(played[-1].astype(np.float32), 1 - 101 * slope, atol=2.0**-8)


def test_optimistic_omd_keeps_log_probabilities_in_float32_where_params_are_bfloat16():
  slopes = np.array([2.0**-10, 0.0])
  start = jnp.array([0.5, 0.5], jnp.bfloat16)
  played, state = decisions(
    optimistic_omd(1.0, entropy()), lambda x, _: jnp.asarray(slopes, x.dtype), start, rounds=200
  )
  assert played.dtype == jnp.bfloat16
  assert state.secondary.dtype == jnp.float32
  odds = np.diff(np.asarray(state.secondary))
  np.testing.assert_allclose(odds, 200 * 2.0**-10, rtol=1e-4)
  expected = 1 / (1 + np.exp(201 * (slopes - slopes[::-1])))
  np.testing.assert_allclose(played[-1].astype(np.float32), expected, atol=2.0**-8)
