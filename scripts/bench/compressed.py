"""`micro_adam` against `optax.adamw`: the update alone, its selection, and a transformer's step."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxrl import models
from optimizers import _window
from optimizers.micro_adam import micro_adam

from . import _problem
from ._measure import Case, Comparison, Program, of_step
from ._peers import Peers
from .train import step_of

MATRICES, COLUMNS = 10, 1000
BLOCK, KEPT = 4096, 41
VOCABULARY = 1024
OPTIMIZERS = {
  "adamw": optax.adamw(1e-3),
  "micro_adam": micro_adam(1e-3),
  "micro_adam, large buckets": micro_adam(1e-3, quant_block_size=100_000),
}


def suite(peers: Peers, sizes: Sequence[int] = (10**6, 10**7)) -> Iterator[Case]:
  """Three cases for each number of parameters."""
  del peers
  for size in sizes:
    yield Case(
      f"update, {size:.0e} parameters",
      {name: update(optimizer, size) for name, optimizer in OPTIMIZERS.items()},
      [Comparison(name, "adamw", 3.0) for name in OPTIMIZERS if name != "adamw"],
    )
    yield Case(
      f"selection, {size:.0e} entries",
      {name: selection(select, size) for name, select in SELECTIONS.items()},
      [
        Comparison("groups, then entries", "one bisection"),
        Comparison("groups, then entries", "lax.top_k"),
      ],
    )
    module, batch = transformer(size)
    steps = {
      name: step_of(module, batch, OPTIMIZERS[name], _steps(size))
      for name in ("adamw", "micro_adam")
    }
    name = f"step, transformer of width {module.width}, depth {module.depth}"
    yield Case(name, steps, [Comparison("micro_adam", "adamw", 1.5)])


def update(optimizer: optax.GradientTransformation, size: int) -> Program:
  """The update alone, of ten matrices."""
  rows = max(size // (MATRICES * COLUMNS), 1)
  keys = jax.random.split(jax.random.key(0), MATRICES)
  gradient = [jax.random.normal(key, (rows, COLUMNS)) for key in keys]
  params = [jnp.zeros((rows, COLUMNS)) for _ in keys]

  def step(state, gradient):
    params, state = state
    updates, state = optimizer.update(gradient, state, params)
    return (params, state), updates

  state = params, jax.jit(optimizer.init)(params)
  return of_step(step, state, gradient, optimizer_state=lambda s: s[1], steps=_steps(size))


def _by_groups(magnitudes: jax.Array) -> jax.Array:
  return _window._largest(_window._bits(magnitudes), KEPT)


def _by_bisection(magnitudes: jax.Array) -> jax.Array:
  chosen = _window._chosen(_window._bits(magnitudes), KEPT)
  return _window._positions(chosen, KEPT)


def _by_top_k(magnitudes: jax.Array) -> jax.Array:
  return jnp.sort(jax.lax.top_k(magnitudes, KEPT)[1], axis=-1)


SELECTIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
  "groups, then entries": _by_groups,
  "one bisection": _by_bisection,
  "lax.top_k": _by_top_k,
}


def selection(select: Callable[[jax.Array], jax.Array], size: int) -> Program:
  """Where the 41 largest of every 4096 entries stand."""
  blocks = max(size // BLOCK, 1)
  entries = jax.random.normal(jax.random.key(0), (1, blocks, BLOCK))

  def step(found, entries):
    del found
    return select(jnp.abs(entries)), ()

  found = jnp.zeros((1, blocks, KEPT), jnp.int32)
  return of_step(step, found, entries, optimizer_state=lambda _: (), steps=_steps(size))


def transformer(size: int) -> tuple[models.Transformer, Any]:
  """About so many parameters in blocks of heads of 64, and a batch of tokens.

  On a CPU the batch has 1024 tokens, on an accelerator 16384.
  """
  heads = max(round((size / (12 * 64**2)) ** (1 / 3)), 1)  # a block has 12 width^2; depth = heads
  sequences, length = (8, 128) if jax.default_backend() == "cpu" else (32, 512)
  make = functools.partial(models.Transformer, VOCABULARY, max_length=length)
  module = make(width=64 * heads, depth=heads, heads=heads)
  return module, _problem.tokens(VOCABULARY, sequences, length)


def _steps(size: int) -> int:
  """Of a round: fewer where they take long."""
  return max(1, min(_problem.STEPS, 2 * 10**7 // size))
