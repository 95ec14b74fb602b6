"""Values of optimizers with small states: official code, Adam, closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optimizers.micro_adam import micro_adam, scale_by_micro_adam
from tests import values

RNG = np.random.default_rng(0)


def close(actual, expected, tolerance=1e-5):
  np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)


def normal(*shape):
  return jnp.asarray(RNG.normal(size=shape), jnp.float32)


def steps_of(optimizer, params, gradients):
  """The parameters after each step."""
  step = jax.jit(optimizer.update)
  state = optimizer.init(params)
  after = []
  for gradient in gradients:
    updates, state = step(gradient, state, params)
    params = optax.apply_updates(params, updates)
    after.append(params)
  return after


# micro_adam


@pytest.mark.parametrize("run", [0, 1])
def test_micro_adam_is_the_official_one_for_24_steps(run):
  golden = values.load("micro_adam")
  run = golden["runs"][run]
  optimizer = micro_adam(
    golden["lr"],
    golden["m"],
    golden["k_init"],
    block_size=golden["block"],
    quant_block_size=golden["quant_block_size"],
    weight_decay=golden["weight_decay"],
    alpha=run["alpha"],
    shards=1,
  )
  narrow = lambda tree: jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), tree)  # noqa: E731
  params = narrow(golden["start"])
  after = steps_of(optimizer, params, map(narrow, golden["gradients"]))
  assert len(after) == len(run["params"]) == 24
  for actual, expected in zip(after, run["params"], strict=True):
    for name, value in expected.items():
      close(actual[name], value)
  leaves = optimizer.init(params)[0].leaves
  assert {name: leaf.indices.shape[-1] for name, leaf in leaves.items()} == run["entries"]


@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_micro_adam_with_every_entry_of_a_long_window_is_adamw(decay):
  params, gradients = {"kernel": normal(8, 5), "gain": normal()}, []
  for _ in range(12):
    gradients.append(jax.tree.map(lambda w: normal(*w.shape), params))
  dense = micro_adam(0.1, 12, 1.0, window_dtype="float32", block_size=3, weight_decay=decay)
  after = steps_of(dense, params, gradients)
  expected = steps_of(optax.adamw(0.1, weight_decay=decay), params, gradients)
  jax.tree.map(lambda one, other: close(one, other, 1e-6), after, expected)


# scale_by_micro_adam


def test_scale_by_micro_adam_makes_larger_steps_than_adam_by_a_short_window():
  optimizer = scale_by_micro_adam(3, 1.0, b1=0.9, b2=0.999)
  state = optimizer.init(jnp.ones(2))._replace(count=jnp.array(100_000))
  step = jax.jit(optimizer.update)
  for _ in range(3):
    updates, state = step(jnp.array([1.0, -4.0]), state)
  gain = (1 - 0.9**3) / np.sqrt(1 - 0.999**3)
  close(updates, [gain, -gain], 1e-4)


def test_scale_by_micro_adam_carries_what_it_does_not_send():
  gradient = jnp.asarray(np.random.default_rng(1).normal(size=(2, 96)), jnp.float32)
  optimizer = scale_by_micro_adam(5, 3 / 32, block_size=32, shards=2, quant_block_size=16)
  state = optimizer.init(gradient)
  sent = np.zeros((2, 96), np.float32)
  step = jax.jit(optimizer.update)
  for t in range(5):
    _, state = step(gradient, state)
    indices = np.asarray(state.leaves.indices)[:, t] + 32 * (np.arange(9) // 3)[None]
    entries = np.asarray(state.leaves.values, np.float32)[:, t]
    np.add.at(sent, (np.arange(2)[:, None], indices), entries)
  leaf = state.leaves
  codes = np.stack([leaf.codes >> 4, leaf.codes & 15], -1).reshape(2, 6, 16)
  low, high = (np.asarray(x, np.float32)[..., None] for x in (leaf.low, leaf.high))
  error = (codes * (high - low) / 15 + low).reshape(2, 96)
  # Each step rounds by half a level, and the ends and what is sent by the 8 bits of bfloat16.
  bound = 5 * (np.max(high - low) / 30 + 2**-8 * np.max(np.abs(sent)))
  assert np.max(np.abs(5 * gradient - sent - error)) < bound
  assert np.max(np.abs(error)) > 2 * bound
