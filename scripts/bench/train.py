"""The train step against the loop that a user would write by hand in plain optax."""

from collections.abc import Iterator

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxrl import models, oracle, train
from objectives.classification.cross_entropy import cross_entropy
from optimizers.sam import sam

from . import _problem
from ._measure import Case, Comparison, Program, of_step
from ._peers import Peers

MODELS = {"mlp": models.Mlp(_problem.CLASSES, _problem.WIDTHS), "cnn": models.Cnn(_problem.CLASSES)}
RHO = 0.05


def suite(peers: Peers) -> Iterator[Case]:
  """AdamW and SAM before AdamW, on the MLP and the small CNN."""
  for model in MODELS:
    for name, rho in {"adamw": None, "sam, adamw": RHO}.items():
      programs = {"jaxrl": library(model, rho), "optax by hand": by_hand(model, rho)}
      comparisons = [Comparison("jaxrl", "optax by hand")]
      if model == "mlp" and rho is None:
        programs["PyTorch"] = peers.program("torch_mlp", "adamw", jax.default_backend())
        comparisons.append(Comparison("jaxrl", "PyTorch"))
      yield Case(f"{model}: {name}", programs, comparisons)


def library(model: str, rho: float | None) -> Program:
  """The library's step."""
  optimizer = optax.adamw(1e-3) if rho is None else optax.chain(sam(rho), optax.adamw(1e-3))
  return library_step(model, optimizer)


def library_step(model: str, optimizer: optax.GradientTransformation) -> Program:
  """The library's step with any optimizer."""
  return step_of(MODELS[model], _problem.batch(), optimizer)


def step_of(
  module: nn.Module,
  batch: dict[str, np.ndarray],
  optimizer: optax.GradientTransformation,
  steps: int = _problem.STEPS,
) -> Program:
  """The library's step for any model."""
  parts = train.make_train(
    models.from_flax(module),
    oracle.lift(cross_entropy),
    optimizer,
    jnp.asarray(batch["inputs"][:1]),
  )
  return of_step(
    parts.step,
    jax.jit(parts.init)(0),
    batch,
    optimizer_state=lambda state: state.optimizer,
    steps=steps,
  )


def by_hand(model: str, rho: float | None) -> Program:
  """The loop of a user who wants this model and this optimizer, and nothing else."""
  module, optimizer, batch = MODELS[model], optax.adamw(1e-3), _problem.batch()

  def init(key):
    variables = dict(module.init({"params": key, "dropout": key}, batch["inputs"][:1], train=False))
    params = variables.pop("params")
    return params, variables, optimizer.init(params), key

  def loss_fn(params, model_state, batch, key):
    logits, model_state = module.apply(
      {"params": params, **model_state},
      batch["inputs"],
      train=True,
      rngs={"dropout": key},
      mutable=["batch_stats"],
    )
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["labels"])
    return losses.mean(), model_state

  def step(state, batch):
    params, model_state, opt_state, key = state
    key, dropout_key = jax.random.split(key)
    gradient_fn = jax.value_and_grad(loss_fn, has_aux=True)
    (loss, new_model_state), gradient = gradient_fn(params, model_state, batch, dropout_key)
    if rho is not None:
      scale = rho / (optax.tree.norm(gradient) + 1e-12)
      uphill = jax.tree.map(lambda w, g: w + scale * g, params, gradient)
      gradient = gradient_fn(uphill, model_state, batch, dropout_key)[1]
    updates, opt_state = optimizer.update(gradient, opt_state, params)
    return (optax.apply_updates(params, updates), new_model_state, opt_state, key), loss

  return of_step(
    step,
    jax.jit(init)(jax.random.key(0)),
    batch,
    optimizer_state=lambda state: state[2],
    steps=_problem.STEPS,
  )
