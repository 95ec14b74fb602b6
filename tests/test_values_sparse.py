"""Values of optimizers that train a few entries: official code, dense Adam, singular vectors."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optimizers.lift import lift, principal_weight_mask
from tests import values

RNG = np.random.default_rng(0)


def narrow(tree):
  return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), tree)


def steps_of(optimizer, params, gradients):
  """Parameters and states after each step."""
  step = jax.jit(optimizer.update)
  state = optimizer.init(params)
  after = []
  for gradient in gradients:
    updates, state = step(gradient, state, params)
    params = optax.apply_updates(params, updates)
    after.append((params, state))
  return after


def chosen_by(w, rank, k):
  """The mask by NumPy's singular vectors and a sort."""
  left, values, right = np.linalg.svd(np.asarray(w, np.float64), full_matrices=False)
  magnitudes = np.abs((left[:, :rank] * values[:rank]) @ right[:rank]).ravel()
  mask = np.zeros(magnitudes.size, bool)
  mask[np.argsort(-magnitudes)[:k]] = True
  return mask.reshape(w.shape)


def test_lift_is_the_official_one_for_24_steps_with_5_choices():
  golden = values.load("lift")
  optimizer = lift(
    golden["learning_rate"],
    golden["rank"],
    golden["filter_rank"],
    golden["update_proj_gap"],
    b1=golden["betas"][0],
    b2=golden["betas"][1],
    eps=golden["eps"],
  )
  after = steps_of(optimizer, narrow(golden["start"]), map(narrow, golden["gradients"]))
  assert len(after) == len(golden["params"]) == 24
  for t, (params, state) in enumerate(after):
    for name, expected in golden["params"][t].items():
      np.testing.assert_allclose(params[name], expected, rtol=2e-6, atol=2e-6)
      np.testing.assert_array_equal(state[0].leaves[name].indices, golden["chosen"][t][name])
  renewed = [len(np.setdiff1d(*pair)) for pair in zip(*chosen_around_steps(golden), strict=True)]
  assert renewed == [7, 2, 4, 3]


def chosen_around_steps(golden):
  """Of the wide matrix, before and after the steps in which the choice is seen to change."""
  chosen = [step["wide"] for step in golden["chosen"]]
  return [chosen[t] for t in (4, 9, 14, 19)], [chosen[t - 1] for t in (4, 9, 14, 19)]


def test_lift_of_all_entries_is_adam_whose_epsilon_is_not_corrected():
  params = {"kernel": RNG.normal(size=(6, 5)), "bias": np.ones(3)}
  gradients = [{"kernel": RNG.normal(size=(6, 5)), "bias": np.ones(3)} for _ in range(24)]
  optimizer = lift(0.1, filter_rank=2, update_interval=7, b1=0.8, eps=0.05, weight_decay=0.3)
  after = steps_of(optimizer, narrow(params), map(narrow, gradients))
  w, m, v = params["kernel"], 0.0, 0.0
  for t, (gradient, (actual, _)) in enumerate(zip(gradients, after, strict=True), 1):
    g = gradient["kernel"]
    m, v = 0.8 * m + 0.2 * g, 0.95 * v + 0.05 * g**2
    step = np.sqrt(1 - 0.95**t) / (1 - 0.8**t) * m / (np.sqrt(v) + 0.05)
    w = w - 0.1 * (step + 0.3 * w)
    np.testing.assert_allclose(actual["kernel"], w, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(actual["bias"], 1)


def test_lift_leaves_every_bit_of_other_entries_as_it_was():
  w = jnp.asarray(RNG.normal(size=(9, 8)), jnp.float32).at[0, 0].set(-0.0)
  gradients = [jnp.asarray(RNG.normal(size=w.shape), jnp.float32) for _ in range(20)]
  optimizer = lift(0.1, 1, 2, update_interval=1000, weight_decay=0.1)
  *_, (after, _) = steps_of(optimizer, w, gradients)
  bits = [np.asarray(x).view(np.int32) for x in (w, after)]
  np.testing.assert_array_equal(bits[0] != bits[1], chosen_by(w, 2, 17))


@pytest.mark.parametrize("svd", ["exact", "randomized"])
def test_lift_filtering_nothing_takes_the_largest_weights(svd):
  w = jnp.asarray(RNG.normal(size=(20, 3)) @ RNG.normal(size=(3, 12)), jnp.float32)
  optimizer = lift(0.1, filter_rank=3, density=0.1, svd=svd)
  ((_, state),) = steps_of(optimizer, w, [jnp.ones_like(w)])
  largest = np.sort(np.argsort(-np.abs(w).ravel())[:24])
  np.testing.assert_array_equal(state[0].leaves.indices, largest)


# principal_weight_mask


def decaying(rows, columns):
  """A matrix whose singular values fall by a fifth each."""
  left, right = (np.linalg.qr(RNG.normal(size=(n, 12)))[0] for n in (rows, columns))
  return (left * 0.8 ** np.arange(12)) @ right.T


@pytest.mark.parametrize("shape", [(40, 17), (12, 50)])
@pytest.mark.parametrize("key", [None, 7])
def test_principal_weight_mask_by_singular_vectors(shape, key):
  w = decaying(*shape)
  key = None if key is None else jax.random.key(key)
  mask = jax.jit(functools.partial(principal_weight_mask, filter_rank=4, k=100, key=key))(
    jnp.asarray(w, jnp.float32)
  )
  expected = chosen_by(w, 4, 100)
  # The randomised one, of 8 dimensions, is off by less than the distance of a few entries.
  assert np.sum(mask) == 100 and np.sum(mask != expected) <= (0 if key is None else 4)
  assert np.sum(expected != chosen_by(w, 12, 100)) > 20  # where magnitudes alone are far off


def test_principal_weight_mask_comes_closer_with_power_iterations():
  w = RNG.normal(size=(60, 50))
  expected = chosen_by(w, 3, 300)

  def wrong(iterations):
    mask = functools.partial(principal_weight_mask, power_iterations=iterations)
    keys = jax.random.split(jax.random.key(0), 8)
    masks = jax.jit(jax.vmap(lambda key: mask(jnp.asarray(w, jnp.float32), 3, 300, key=key)))
    return np.mean(np.asarray(masks(keys)) != expected)

  assert 10 * wrong(20) < wrong(0)


@pytest.mark.parametrize(
  ("shape", "rows"), [((3, 3, 8, 16), 72), ((64, 4, 16), 64), ((4, 16, 64), 64)]
)
def test_principal_weight_mask_of_kernels_of_more_axes(shape, rows):
  w = RNG.normal(size=shape)
  mask = jax.jit(lambda w: principal_weight_mask(w, 2, 50))(jnp.asarray(w, jnp.float32))
  np.testing.assert_array_equal(mask, chosen_by(w.reshape(rows, -1), 2, 50).reshape(shape))
