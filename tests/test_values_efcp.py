"""Values of preconditioners of compressed gradients: official code, dense solves, closed forms."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optimizers.low_rank_mfac import low_rank_mfac
from optimizers.sparse_ggt import sparse_ggt
from optimizers.sparse_mfac import sparse_mfac
from tests import values

WHOLE = {"block_size": None, "shards": 1}


def points_of(optimizer, golden):
  """The parameters after each step on a golden's gradients, in float64."""
  with jax.enable_x64(True):
    params = jax.tree.map(jnp.asarray, golden["start"])
    state, step = optimizer.init(params), jax.jit(optimizer.update)
    after = []
    for gradient in golden["gradients"]:
      updates, state = step(jax.tree.map(jnp.asarray, gradient), state, params)
      params = optax.apply_updates(params, updates)
      after.append(params)
  return after


def assert_are(points, expected, tolerance):
  assert len(points) == len(expected) == 30
  for point, values_of in zip(points, expected, strict=True):
    for name, value in values_of.items():
      np.testing.assert_allclose(point[name], value, rtol=tolerance, atol=tolerance)


def updates_of(optimizer, gradients):
  """The update after each of `gradients [steps, d]`, in float32, and the last state."""

  def step(state, gradient):
    updates, state = optimizer.update(gradient, state)
    return state, updates

  gradients = jnp.asarray(gradients, jnp.float32)
  state, updates = jax.jit(functools.partial(jax.lax.scan, step))(
    optimizer.init(gradients[0]), gradients
  )
  return np.asarray(updates, np.float64), state


def windows_of(gradients, m):
  """The dense window after each step, in float64."""
  for t in range(len(gradients)):
    window = np.zeros((m, gradients.shape[1]))
    for earlier in range(max(0, t - m + 1), t + 1):
      window[earlier % m] = np.float32(gradients[earlier])
    yield window, window[t % m]


def wandering(steps, size, seed=0):
  """Gradients that resemble each other, of sizes around 1."""
  rng = np.random.default_rng(seed)
  drift = np.cumsum(rng.normal(size=(steps, size)), axis=0)
  return (drift + rng.normal(size=(steps, size))) / np.sqrt(size * steps)


def assert_relatively_close(updates, expected, tolerance):
  gap = np.linalg.norm(updates - expected, axis=1) / np.linalg.norm(expected, axis=1)
  assert np.max(gap) < tolerance, np.max(gap)


# sparse_mfac


def test_sparse_mfac_of_the_whole_vector_is_the_official_one_for_30_steps():
  golden = values.load("sparse_mfac")
  optimizer = optax.chain(
    optax.flatten(sparse_mfac(golden["ngrads"], golden["k_init"], golden["damp"], **WHOLE)),
    optax.trace(golden["momentum"]),
    optax.sgd(golden["lr"]),
  )
  assert_are(points_of(optimizer, golden), golden["params"], 1e-8)


def test_sparse_mfac_of_blocks_is_the_official_one_for_30_steps():
  golden = values.load("sparse_mfac_blocks")
  cut = {"block_size": golden["block"], "shards": 1}
  optimizer = optax.chain(
    optax.flatten(sparse_mfac(golden["m"], golden["k_init"], golden["damp"], **cut)),
    optax.add_decayed_weights(golden["weight_decay"]),
    optax.sgd(golden["lr"]),
  )
  assert_are(points_of(optimizer, golden), golden["params"], 1e-8)


@pytest.mark.parametrize(
  ("damp", "wide", "tolerance"), [(1e-2, False, 1e-5), (1e-7, False, 1e-2), (1e-7, True, 1e-6)]
)
def test_sparse_mfac_with_every_entry_is_dense_mfac(damp, wide, tolerance):
  m, gradients = 16, wandering(60, 40)
  with jax.enable_x64(wide):
    updates, _ = updates_of(sparse_mfac(m, 1.0, damp), gradients)
  expected = [
    np.linalg.solve(damp * np.eye(len(c)) + window.T @ window / m, c)
    for window, c in windows_of(gradients, m)
  ]
  assert_relatively_close(updates, np.array(expected), tolerance)


@pytest.mark.parametrize(("wide", "tolerance"), [(False, 0.1), (True, 1e-3)])
def test_sparse_mfac_of_equal_gradients_survives_a_damping_below_rounding(wide, tolerance):
  c = wandering(1, 50)[0].astype(np.float32)
  with jax.enable_x64(wide):
    updates, _ = updates_of(sparse_mfac(32, 1.0, 1e-12), np.tile(c, (70, 1)))
  equal = np.minimum(np.arange(1, 71), 32)[:, None]  # rows of the window that are c
  assert_relatively_close(updates, c * 32 / equal / (c @ c), tolerance)
  along = updates @ c / np.linalg.norm(updates, axis=1) / np.linalg.norm(c)
  np.testing.assert_allclose(along, 1, rtol=2e-3)


def test_sparse_mfac_of_a_window_of_one_is_sherman_morrison():
  gradients, damp = wandering(4, 30), 0.1
  updates, _ = updates_of(sparse_mfac(1, 1.0, damp), gradients)
  along = np.sum(gradients**2, axis=1, keepdims=True)
  expected = gradients / damp - gradients * along / damp**2 / (1 + along / damp)
  np.testing.assert_allclose(updates, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("window_dtype", ["float32", "bfloat16"])
def test_sparse_mfac_carries_what_it_does_not_send(window_dtype):
  gradients = wandering(6, 64)
  optimizer = sparse_mfac(6, 0.1, block_size=32, shards=1, window_dtype=window_dtype)
  _, state = updates_of(optimizer, gradients)
  sent = np.zeros(64)
  kept = state.windows.indices.shape[-1]
  starts = 32 * (np.arange(kept) // (kept // 2))
  for where, entries in zip(state.windows.indices[0], state.windows.values[0], strict=True):
    sent[where + starts] += np.asarray(entries, np.float64)
  total = np.sum(gradients, axis=0)
  np.testing.assert_allclose(sent + state.error, total, rtol=1e-5, atol=1e-6)
  assert np.linalg.norm(state.error) > 0.3 * np.linalg.norm(total)


# sparse_ggt


@pytest.mark.parametrize("run", [0, 1])
def test_sparse_ggt_with_its_jitter_is_the_official_one_for_30_steps(run):
  golden = values.load("sparse_ggt")
  run = golden["runs"][run]
  options = {"jitter": golden["jitter"], **WHOLE}
  optimizer = optax.chain(
    optax.add_decayed_weights(golden["wd"]),
    optax.flatten(sparse_ggt(golden["r"], golden["k_init"], run["eps"], **options)),
    optax.sgd(run["lr"]),
  )
  assert_are(points_of(optimizer, golden), run["params"], 1e-8)


@pytest.mark.parametrize("eps", [1e-8, 0.3])
def test_sparse_ggt_with_every_entry_is_dense_ggt(eps):
  m, gradients = 12, wandering(50, 40)
  updates, _ = updates_of(sparse_ggt(m, 1.0, eps), gradients)
  expected = []
  for window, c in windows_of(gradients, m):
    squares, vectors = np.linalg.eigh(window.T @ window)
    roots = np.sqrt(np.maximum(squares, 0))
    within = squares > 1e-12 * squares[-1]  # c has no part in the rest
    expected.append(vectors @ np.where(within, vectors.T @ c / (roots + eps), 0))
  assert_relatively_close(updates, np.array(expected), 2e-4)


def test_sparse_ggt_of_equal_gradients_divides_by_their_sum():
  c = wandering(1, 50)[0]
  updates, _ = updates_of(sparse_ggt(8, 1.0), np.tile(c, (20, 1)))
  equal = np.minimum(np.arange(1, 21), 8)[:, None]
  assert_relatively_close(updates, c / np.sqrt(equal) / np.linalg.norm(c), 2e-3)


def test_sparse_ggt_is_tens_of_times_longer_by_the_official_jitter():
  gradients = wandering(30, 60)
  exact, _ = updates_of(sparse_ggt(10, 0.2), gradients)
  shifted, _ = updates_of(sparse_ggt(10, 0.2, jitter=1e-6), gradients)
  ratios = np.linalg.norm(shifted, axis=1) / np.linalg.norm(exact, axis=1)
  assert np.all(ratios[10:] > 20), ratios


# low_rank_mfac


def test_low_rank_mfac_is_the_official_one_for_30_steps():
  golden = values.load("low_rank_mfac")
  m = golden["num_grads"]
  element = low_rank_mfac(m, golden["rank"], golden["damp"])

  def init(params):
    # The official factors before the first step, as those of a last one that has no weight.
    state = element.init(params)
    leaves = {
      name: leaf._replace(right=leaf.right.at[:, -1].set(golden["right"][name]))
      if name in golden["right"]
      else leaf
      for name, leaf in state.leaves.items()
    }
    return state._replace(count=jnp.array(m, jnp.int32), leaves=leaves)

  started = optax.GradientTransformationExtraArgs(init, element.update)
  optimizer = optax.chain(started, optax.sgd(golden["lr"]))
  assert_are(points_of(optimizer, golden), golden["params"], 1e-6)  # there norms are raised by 1e-8


def test_low_rank_mfac_is_a_dense_solve_with_what_it_sends():
  rng = np.random.default_rng(3)
  m, damp, shape = 5, 1e-2, (9, 7)
  gradients = rng.normal(size=(14, 9, 1)) * rng.normal(size=(14, 1, 7)) + 0.1
  optimizer = low_rank_mfac(m, 2, damp)
  state, step = optimizer.init(jnp.zeros(shape)), jax.jit(optimizer.update)
  sent, updates = [], []
  for t, gradient in enumerate(gradients):
    update, state = step(jnp.asarray(gradient, jnp.float32), state)
    updates.append(np.ravel(update))
    left, right = (np.asarray(x, np.float64)[:, t % m] for x in state.leaves[1:])
    np.testing.assert_allclose(left.T @ left, np.eye(2), atol=1e-5)
    sent.append(np.ravel(left @ right.T))
  total = np.sum(gradients, axis=0)
  np.testing.assert_allclose(np.sum(sent, axis=0).reshape(shape) + state.leaves.error, total, 1e-4)
  sent = np.array(sent)
  expected = [
    np.linalg.solve(damp * np.eye(63) + window.T @ window / m, c)
    for window, c in windows_of(sent, m)
  ]
  assert_relatively_close(np.array(updates), np.array(expected), 1e-3)
