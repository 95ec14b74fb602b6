"""Sharpness-aware methods against the plain step, and `sam` against other libraries' SAM."""

from collections.abc import Iterator

import jax
import optax

from jaxrl import check
from optimizers.gam import gam
from optimizers.sam import sam

from ._measure import Case, Comparison
from ._peers import Peers
from .train import RHO, library_step


def suite(peers: Peers) -> Iterator[Case]:
  """All programs of a model in one run; only the optimizer of the train step differs."""
  for model, base in {"mlp": optax.sgd(0.1), "cnn": optax.adamw(1e-3)}.items():
    programs = {name: library_step(model, step) for name, step in optimizers(base).items()}
    comparisons = [
      Comparison("sam", "plain", 2.1),
      Comparison("optax.contrib.sam", "plain"),
      Comparison("sam", "optax.contrib.sam", 1.0),
      Comparison("gam", "plain", 4.3),
    ]
    if model == "mlp":
      programs["pytorch_optimizer"] = peers.program("torch_mlp", "sam", jax.default_backend())
      comparisons.append(Comparison("sam", "pytorch_optimizer"))
    yield Case(f"{model}, {'sgd' if model == 'mlp' else 'adamw'}", programs, comparisons)


def optimizers(base: optax.GradientTransformation) -> dict[str, optax.GradientTransformation]:
  """What is put before `base`, by name."""
  return {
    "plain": base,
    "sam": optax.chain(sam(RHO), base),
    "optax.contrib.sam": optax_sam(base, RHO),
    "gam": optax.chain(gam(), base),
  }


def optax_sam(
  base: optax.GradientTransformation, rho: float
) -> optax.GradientTransformationExtraArgs:
  """SAM as the documentation of optax.contrib.sam has it for steps with BatchNorm."""
  uphill = optax.chain(optax.contrib.normalize(), optax.sgd(rho))
  theirs = optax.contrib.sam(base, uphill, sync_period=2, opaque_mode=True)

  def update_fn(updates, state, params=None, *, value_fn=None, **extra_args):
    del extra_args
    gradient_fn = jax.grad(check.value_fn("optax_sam", value_fn))
    return theirs.update(updates, state, params, grad_fn=lambda w, _step: gradient_fn(w))

  return optax.GradientTransformationExtraArgs(theirs.init, update_fn)
