"""Second-order methods: `egn` against python-somax and Adam, `fosi` and `oasis` against Adam.

Steps are compared as in the other suites. The cases `to one loss` compare whole trainings: a
program's time is that of all steps until its loss first lies below the same number.
"""

import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxrl import data, models, oracle, train
from jaxrl.oracle import Oracle
from objectives.classification.cross_entropy import cross_entropy
from optimizers.egn import egn
from optimizers.fosi import fosi
from optimizers.oasis import oasis

from . import _gauss_newton
from ._measure import Case, Comparison, Program, of_step
from ._peers import Peers
from .train import library_step

BATCHES = {"squared_error": 128, "cross_entropy": 32}
GOAL, BATCH, MOST = 0.05, 32, 1000
"""Mean cross-entropy of the training split of digits; examples a step; steps at most."""


def suite(peers: Peers) -> Iterator[Case]:
  """Steps of `egn` and `fosi`, and trainings to one loss."""
  for loss, size in BATCHES.items():
    programs = {
      "egn": gauss_newton(loss, size, independent=True),
      "egn, whole batch": gauss_newton(loss, size),
      "egn, conjugate gradients": gauss_newton(loss, size, max_system=0, cg_steps=10),
      "adam": first_order(loss, size, optax.adam(1e-3)),
      "somax": peers.program("somax_egn", loss, str(size)),
    }
    comparisons = [Comparison("egn", "somax", 1.0), Comparison("egn, whole batch", "somax")]
    comparisons += [Comparison(name, "adam") for name in ("egn", "egn, conjugate gradients")]
    yield Case(f"{loss}, batch {size}", programs, comparisons)

  yield Case(
    "mlp, fosi at its defaults",
    {"fosi": amortized_fosi(), "adam": library_step("mlp", optax.adam(1e-3))},
    [Comparison("fosi", "adam", 1.1)],
  )
  programs = {name: training(optimizer) for name, optimizer in at_their_best().items()}
  yield Case(
    "digits to one loss",
    programs,
    [Comparison(name, "adam") for name in programs if name != "adam"],
  )


def at_their_best() -> dict[str, optax.GradientTransformation]:
  """Each with the best of its learning rates, as `docs/performance.md` says."""
  return {
    "adam": optax.adam(3e-3),
    "egn, conjugate gradients": egn(1.0, max_system=0),
    "fosi": fosi(optax.adam(3e-3), every=100),
    "oasis": oasis(0.1, adaptive=False, b1=0.9, alpha=0.1, warm_start=10),
    "oasis, adaptive": oasis(warm_start=10, alpha=0.1),
  }


def model(params: Any, inputs: jax.Array) -> jax.Array:
  """The perceptron of `_gauss_newton`."""
  for kernel, bias in params[:-1]:
    inputs = jnp.tanh(inputs @ kernel + bias)
  return inputs @ params[-1][0] + params[-1][1]


def loss_of(loss: str, outputs: jax.Array, targets: jax.Array) -> jax.Array:
  """The mean, as python-somax has it: half of the squared error."""
  if loss == "squared_error":
    return jnp.mean(jnp.sum((outputs - targets) ** 2, axis=-1)) / 2
  return jnp.mean(optax.softmax_cross_entropy(outputs, targets))


def gauss_newton(loss: str, size: int, **options: Any) -> Program:
  """A step of `egn`, with nothing around it."""
  optimizer = egn(_gauss_newton.LEARNING_RATE, damping=_gauss_newton.DAMPING, **options)
  return first_order(loss, size, optimizer)


def first_order(loss: str, size: int, optimizer: optax.GradientTransformation) -> Program:
  """A step of any optimizer on the same problem."""
  optimizer = optax.with_extra_args_support(optimizer)
  batch = _gauss_newton.batch(loss, size)
  params = jax.tree.map(jnp.asarray, _gauss_newton.weights(batch["targets"].shape[-1]))

  def step(state, batch):
    params, opt_state = state

    def outputs(params, inputs=None):
      return model(params, batch["inputs"] if inputs is None else inputs)

    def of_outputs(outputs):
      return loss_of(loss, outputs, batch["targets"])

    value_fn = Oracle(
      lambda params: of_outputs(outputs(params)),
      params,
      outputs=outputs,
      loss_of=of_outputs,
      batch=batch,
    )
    value, gradient = jax.value_and_grad(value_fn)(params)
    updates, opt_state = optimizer.update(gradient, opt_state, params, value_fn=value_fn)
    return (optax.apply_updates(params, updates), opt_state), value

  return of_step(
    step,
    (params, optimizer.init(params)),
    batch,
    optimizer_state=lambda state: state[1],
    steps=_gauss_newton.STEPS,
  )


def amortized_fosi() -> Program:
  """A step of `fosi`, with its share of an estimate that comes once in 800 steps."""
  every = 800
  between = library_step("mlp", fosi(optax.adam(1e-3)))
  with_estimate = library_step("mlp", fosi(optax.adam(1e-3), every=1))
  assert between.run is not None and with_estimate.run is not None
  usual, once = between.run, one_step(with_estimate.run)

  def run():
    return ((every - 1) * usual() + once()) / every

  return between._replace(run=run, note="an estimate in 800 steps")


def one_step(run: Callable[[], float]) -> Callable[[], float]:
  """A round's seconds a step, measured once: estimates are two orders dearer than steps."""
  known: list[float] = []

  def once():
    if not known:
      known.append(run())
    return known[0]

  return once


def training(optimizer: optax.GradientTransformation) -> Program:
  """Training on digits until the loss of the training split lies below the goal.

  It is looked at every tenth step, which the time leaves out.
  """
  split = data.in_memory(data.load("digits").splits["train"])
  parts = train.make_train(
    models.make("mlp", 10), oracle.lift(cross_entropy), optimizer, jnp.asarray(split["inputs"][:1])
  )
  init, step, evaluate = map(jax.jit, (parts.init, parts.step, parts.evaluate))
  batches, whole = list(map(_with_mask, _batches(split))), _with_mask(split)

  def trained() -> tuple[float, int]:
    state, seconds, steps = init(0), 0.0, 0
    while steps < MOST and train.mean_metrics([evaluate(state, whole)])["nll"] >= GOAL:
      start = time.perf_counter()
      for _ in range(10):
        state, _ = step(state, batches[steps % len(batches)])
        steps += 1
      jax.block_until_ready(state)
      seconds += time.perf_counter() - start
    return seconds, steps

  _, steps = trained()  # and all is compiled
  if steps >= MOST:
    return Program(None, f"goal not reached in {MOST} steps")
  return Program(lambda: trained()[0], f"{steps} steps")


def _batches(split: dict[str, np.ndarray]) -> Iterator[dict[str, np.ndarray]]:
  order = np.random.default_rng(0).permutation(len(split["labels"]))
  for start in range(0, len(order) - BATCH + 1, BATCH):
    rows = order[start : start + BATCH]
    yield {name: column[rows] for name, column in split.items()}


def _with_mask(batch: Any) -> dict[str, np.ndarray]:
  return {**batch, "mask": np.ones(len(batch["labels"]), np.float32)}
