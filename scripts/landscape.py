"""The landscape around a finished run: spectrum, extremes, lines, a plane, sharpness.

python -m scripts.landscape runs/<name>
"""

import dataclasses
import pathlib
import sys
from collections.abc import Callable
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from jaxrl import check, data, plots
from jaxrl.diagnostics.class_extremes import class_extremes
from jaxrl.diagnostics.directional_sharpness import directional_sharpness
from jaxrl.diagnostics.hessian_spectrum import (
  Spectrum,
  hessian_extremes,
  hessian_spectrum,
  spectral_density,
)
from jaxrl.diagnostics.linear_path import filter_normalized, linear_path, loss_plane
from jaxrl.diagnostics.module_criticality import module_criticality
from jaxrl.diagnostics.sharpness import random_sharpness, worst_case_sharpness
from jaxrl.metrics import table, write_json
from scripts._finished import Trained, load

_DENSITY_POINTS = 400
_AROUND = (-1.0, 1.0)
_FROM_START = (-0.1, 1.5)
_TITLES = {
  "initial": "from the initial parameters (0) to the final ones (1)",
  "sharpest": "along the eigenvector of the largest eigenvalue",
  "random": "along a random direction, filter-normalised",
}


@dataclasses.dataclass(frozen=True)
class Config:
  """Show the landscape of the loss around the parameters of a finished run.

  The loss is the mean cross-entropy (or squared error) of examples, the model in evaluation
  mode and in float32, at the parameters that the run evaluates. Pictures and numbers go to
  landscape/ in the run's folder.
  """

  run: Annotated[pathlib.Path, tyro.conf.Positional]
  """Folder of a run, or of one member, such as runs/first/seed-0."""
  split: Literal["train", "validation", "test"] = "train"
  """Whose loss."""
  examples: int = 512
  """From the beginning of the split; memory grows with them."""
  order: int = 40
  """Steps of Lanczos' iteration; each keeps a vector of the size of the parameters. Half as
  many for each class."""
  probes: int = 2
  """Random vectors for the density of eigenvalues."""
  count: int = 10
  """Eigenvalues at each end."""
  rho: float = 0.05
  """Radius of the ball for the worst case, and deviation of random perturbations."""
  points: int = 41
  """Along each line."""
  plane_points: int = 21
  """Along each side of the plane."""
  seed: int = 0
  """Of all random draws."""


class Problem(NamedTuple):
  """The loss of some examples, as a function of the parameters, and its parts by class."""

  loss: Callable[[Any], jax.Array]
  class_loss: Callable[[Any, jax.Array], jax.Array] | None
  present: np.ndarray
  examples: int


def problem(trained: Trained, split: str, examples: int) -> Problem:
  """The loss of the first `examples` of a split."""
  check.whole("examples", examples, 1)
  source = trained.dataset.splits[split]
  examples = min(examples, data.size(source))
  padded = -(-examples // trained.places) * trained.places
  batch = next(data.eval_batches(source, padded))
  batch["mask"] = (np.arange(padded) < examples) * batch["mask"]
  present = np.unique(batch["labels"][batch["mask"] > 0]) if "labels" in batch else np.zeros(0)
  batch = trained.place(batch)
  name = "nll" if "labels" in batch else "squared_error"

  def mean(params, mask):
    state = trained.state._replace(params=params)
    sums = trained.parts.evaluate(state, {**batch, "mask": mask})
    return sums[name] / jnp.maximum(sums["examples"], 1)

  def class_loss(params, label):
    return mean(params, batch["mask"] * (batch["labels"] == label))

  by_class = class_loss if "labels" in batch else None
  return Problem(lambda params: mean(params, batch["mask"]), by_class, present, examples)


def measured(config: Config, trained: Trained) -> dict[str, Any]:
  """All numbers: scalars, and arrays for the figures."""
  what = problem(trained, config.split, config.examples)
  keys = iter(jax.random.split(jax.random.key(config.seed), 8))
  params, size = trained.state.params, sum(x.size for x in jax.tree.leaves(trained.state.params))
  order = min(config.order, size)
  count = min(config.count, order)
  extremes = hessian_extremes(what.loss, params, next(keys), count=count, order=order)
  spectrum = hessian_spectrum(what.loss, params, next(keys), order=order, probes=config.probes)
  gradient = jax.jit(jax.grad(what.loss))(params)
  found = {
    "split": config.split,
    "examples": what.examples,
    "parameters": size,
    "loss": jax.jit(what.loss)(params),
    "gradient_norm": jnp.sqrt(sum(jnp.vdot(g, g) for g in jax.tree.leaves(gradient))),
    "extremes": _extremes(extremes, gradient),
    "spectrum": _spectrum(spectrum, extremes),
    "gradient_sharpness": directional_sharpness(what.loss, params, gradient).sharpness,
    "sharpness": _sharpness(config, what.loss, params, next(keys), next(keys)),
    "criticality": _criticality(what.loss, params),
    **_lines_and_plane(config, what.loss, trained, extremes, next(keys), next(keys)),
  }
  if what.class_loss is not None:
    found["classes"] = _classes(what, trained, next(keys), order)
  return found


def _extremes(extremes: Any, gradient: Any) -> dict[str, Any]:
  """Eigenvalues, and the share of the gradient that lies among the largest ones' vectors."""
  rows = jax.tree.map(
    lambda v, g: jnp.tensordot(v, g, axes=g.ndim), extremes.largest_vectors, gradient
  )
  inside = jnp.sum(sum(jax.tree.leaves(rows)) ** 2)
  whole = sum(jnp.vdot(g, g) for g in jax.tree.leaves(gradient))
  overlap = jnp.sqrt(inside / jnp.where(whole == 0, 1, whole))
  return {**extremes._asdict(), "gradient_overlap": overlap} | {
    "smallest_vectors": None,
    "largest_vectors": None,
  }


def _spectrum(spectrum: Spectrum, extremes: Any) -> dict[str, Any]:
  lowest, highest = extremes.smallest[0], extremes.largest[0]
  scale = jnp.maximum(jnp.abs(lowest), jnp.abs(highest))
  width = jnp.maximum(0.01 * (highest - lowest), 1e-12)
  points = jnp.linspace(lowest - 5 * width, highest + 5 * width, _DENSITY_POINTS)
  near_zero = jnp.abs(spectrum.eigenvalues) < 1e-3 * scale
  return {
    "eigenvalues": spectrum.eigenvalues,
    "weights": spectrum.weights,
    "trace": jnp.mean(spectrum.trace),
    "trace_of_probes": spectrum.trace,
    "near_zero": jnp.sum(spectrum.weights * near_zero) / len(spectrum.trace),
    "points": points,
    "density": spectral_density(spectrum, points, width),
  }


def _sharpness(
  config: Config, loss: Any, params: Any, key: jax.Array, other: jax.Array
) -> dict[str, Any]:
  average = random_sharpness(loss, params, other, config.rho)
  return {
    "rho": config.rho,
    "worst_case": worst_case_sharpness(loss, params, key, config.rho),
    "random": average.mean,
    "random_error": average.error,
    "adaptive_worst_case": worst_case_sharpness(loss, params, key, config.rho, adaptive=True),
  }


def _criticality(loss: Any, params: Any) -> dict[str, jax.Array]:
  """Of every array of rank 2 and more."""
  matrices = [
    jax.tree_util.keystr(path, simple=True, separator="/")
    for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    if leaf.ndim > 1
  ]
  return module_criticality(loss, params, where=f"^({'|'.join(matrices)})$")


def _lines_and_plane(
  config: Config, loss: Any, trained: Trained, extremes: Any, key: jax.Array, other: jax.Array
) -> dict[str, Any]:
  params = trained.state.params
  first, second = (filter_normalized(_noise(k, params), params) for k in (key, other))
  sharpest = jax.tree.map(lambda v: v[0], extremes.largest_vectors)
  around = np.linspace(*_AROUND, config.points)
  from_start = np.linspace(*_FROM_START, config.points)
  side = np.linspace(*_AROUND, config.plane_points)

  def along(direction):
    end = jax.tree.map(jnp.add, params, direction)
    return {"at": around, "loss": linear_path(loss, params, end, around)}

  initial = linear_path(loss, trained.initial, params, from_start)
  return {
    "lines": {
      "initial": {"at": from_start, "loss": initial},
      "sharpest": along(sharpest),
      "random": along(first),
    },
    "plane": {"at": side, "loss": loss_plane(loss, params, first, second, side, side)},
  }


@jax.jit
def _noise(key: jax.Array, params: Any) -> Any:
  leaves, structure = jax.tree.flatten(params)
  keys = jax.random.split(key, len(leaves))
  draws = [jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)]
  return jax.tree.unflatten(structure, draws)


def _classes(what: Problem, trained: Trained, key: jax.Array, order: int) -> dict[str, Any]:
  """Extremes by class; NaN, null in JSON, for classes without examples."""
  num_classes = trained.dataset.num_classes
  assert what.class_loss is not None and num_classes is not None
  params, few = trained.state.params, -(-order // 2)
  found = class_extremes(what.class_loss, params, key, num_classes, order=few)
  absent = ~np.isin(np.arange(num_classes), what.present)
  return {name: np.where(absent, np.nan, values[:, 0]) for name, values in found._asdict().items()}


def figures(found: dict[str, Any]) -> dict[str, Any]:
  """The figures by file name."""
  drawn = {
    "spectrum": plots.spectrum(
      found["spectrum"]["points"], found["spectrum"]["density"], found["extremes"]["largest"]
    ),
    "lines": plots.loss_lines({title: found["lines"][name] for name, title in _TITLES.items()}),
    "plane": plots.loss_plane(found["plane"]["at"], found["plane"]["loss"]),
    "criticality": plots.bars("module criticality", found["criticality"]),
  }
  if "classes" in found:
    drawn["classes"] = plots.class_extremes(
      found["classes"]["smallest"], found["classes"]["largest"]
    )
  return drawn


def summary(found: dict[str, Any]) -> str:
  """A table of the scalars."""
  extremes, spectrum, sharpness = found["extremes"], found["spectrum"], found["sharpness"]
  rows = [
    ["loss", found["loss"]],
    ["gradient norm", found["gradient_norm"]],
    ["largest eigenvalue", extremes["largest"][0]],
    ["smallest eigenvalue", extremes["smallest"][0]],
    ["trace", spectrum["trace"]],
    ["share of eigenvalues near 0", spectrum["near_zero"]],
    ["sharpness along the gradient", found["gradient_sharpness"]],
    [f"share of the gradient in the top {len(extremes['largest'])}", extremes["gradient_overlap"]],
    [f"worst rise within {sharpness['rho']}", sharpness["worst_case"]],
    [f"worst rise within {sharpness['rho']} |w|", sharpness["adaptive_worst_case"]],
    [f"mean rise at deviation {sharpness['rho']}", sharpness["random"]],
  ]
  if "classes" in found:
    lowest = found["classes"]["smallest"]
    rows += [[f"smallest eigenvalue, class {np.nanargmin(lowest)}", np.nanmin(lowest)]]
  head = f"{found['split']}, {found['examples']} examples"
  return table([head, "value"], rows)


def main() -> None:
  """The command line."""
  config = tyro.cli(Config, prog="python -m scripts.landscape")
  try:
    for name in ("order", "probes", "count", "points", "plane_points"):
      check.whole(name, getattr(config, name), 1)
    check.at_least("rho", config.rho, 0)
    found = jax.device_get(measured(config, load(config.run)))
    folder = config.run / "landscape"
    folder.mkdir(exist_ok=True)
    write_json(folder / "landscape.json", _lists(found))
    for name, figure in (drawn := figures(found)).items():
      figure.savefig(folder / f"{name}.png", dpi=110)
  except (ValueError, OSError) as error:
    print("error: " + " ".join(str(error).split()), file=sys.stderr)
    sys.exit(2)
  print(summary(found))
  print(f"written to {folder}: landscape.json, {', '.join(f'{name}.png' for name in drawn)}")


def _lists(found: Any) -> Any:
  if isinstance(found, dict):
    return {name: _lists(value) for name, value in found.items() if value is not None}
  return found.tolist() if isinstance(found, np.ndarray | np.generic) else found


if __name__ == "__main__":
  main()
