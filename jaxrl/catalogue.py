"""What the library holds: the public functions of its files, read without importing them."""

import ast
import copy
import functools
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

PACKAGES = ("optimizers", "objectives")
"""Whose functions specs and rows are made of."""
DIAGNOSTICS = ("jaxrl.diagnostics",)
"""Whose functions are methods too, called with a loss and parameters."""

GLOSSARY = (
  *("logits", "labels", "predictions", "targets", "teacher_logits", "features"),
  *("index", "group", "mask"),
  *("chosen_logps", "rejected_logps", "ref_chosen_logps", "ref_rejected_logps"),
  *("chosen_mask", "rejected_mask"),
  *("logps", "old_logps", "ref_logps", "advantages"),
)
"""The names that array arguments of losses may have."""

GRADIENT_TRANSFORMATION = "gradient transformation"
OBJECTIVE = "objective"
LOSS_TRANSFORM = "loss transform"
BATCH_TRANSFORM = "batch transform"
LOSS = "loss"
SCHEDULE = "schedule"
SOLVER = "solver"
OTHER = "function"

_KIND_OF_RETURN = {
  "GradientTransformation": GRADIENT_TRANSFORMATION,
  "GradientTransformationExtraArgs": GRADIENT_TRANSFORMATION,
  "Objective": OBJECTIVE,
  "LossTransform": LOSS_TRANSFORM,
  "BatchTransform": BATCH_TRANSFORM,
  "Schedule": SCHEDULE,
  "Solver": SOLVER,
  "Compressor": "compressor",
  "Aggregator": "aggregator",
  "MirrorMap": "mirror map",
  "Projection": "projection",
  "Mask": "mask",
  "StepSize": "step size",
  "Reparameterization": "reparameterization",
}


class Entry(NamedTuple):
  """A public function of the library.

  `kind` is read from the signature: the last part of the return annotation, else `loss`
  where a positional argument has a glossary name, else `function`, which cannot stand in a
  spec. `identifiers` are the names, arguments, attributes (`oracle.lift`) and one-word strings in
  the function and in the functions of its file that it calls.
  """

  name: str
  module: str
  file: str
  kind: str
  summary: str
  signature: str
  replaces_gradient: bool
  docstring: str
  identifiers: frozenset[str]


@functools.cache
def catalogue(packages: tuple[str, ...] = PACKAGES) -> tuple[Entry, ...]:
  """The public functions of `packages`, sorted by file.

  Files and functions whose names begin with `_` are private, and `eval_params` belongs to
  the method of its file.
  """
  return tuple(
    entry
    for package in packages
    for root in _folders(package)
    for file in sorted(root.rglob("*.py"))
    if not any(part.startswith("_") for part in file.relative_to(root).parts)
    for entry in _entries(file, root.parents[package.count(".")])
  )


def duplicates(packages: Sequence[str] = PACKAGES) -> dict[str, list[str]]:
  """Names that stand in several files, with the files. There should be none."""
  files: dict[str, list[str]] = {}
  for entry in catalogue(tuple(packages)):
    files.setdefault(entry.name, []).append(entry.file)
  return {name: found for name, found in files.items() if len(found) > 1}


def _folders(package: str) -> list[Path]:
  found = importlib.util.find_spec(package)
  if found is None or found.submodule_search_locations is None:
    raise ValueError(f"packages: there is no package {package!r}")
  return [Path(folder) for folder in found.submodule_search_locations]


def _entries(file: Path, parent: Path) -> list[Entry]:
  tree = ast.parse(file.read_text(encoding="utf-8"))
  functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
  path = file.relative_to(parent)
  return [
    Entry(
      name=name,
      module=".".join(path.with_suffix("").parts),
      file=path.as_posix(),
      kind=_kind(node),
      summary=(ast.get_docstring(node) or "").partition("\n")[0],
      signature=_signature(node),
      replaces_gradient=_says_replaces_gradient(tree),
      docstring=ast.get_docstring(node) or "",
      identifiers=_identifiers(name, functions),
    )
    for name, node in functions.items()
    if not name.startswith("_") and name != "eval_params"
  ]


def _kind(node: ast.FunctionDef) -> str:
  kind = _KIND_OF_RETURN.get(_last_part(node.returns))
  if kind is not None:
    return kind
  positional = [argument.arg for argument in (*node.args.posonlyargs, *node.args.args)]
  return LOSS if set(positional) & set(GLOSSARY) else OTHER


def _last_part(annotation: ast.expr | None) -> str:
  match annotation:
    case ast.Name(id=name) | ast.Attribute(attr=name):
      return name
    case ast.Constant(value=str(text)):
      return text.rpartition(".")[2]
  return ""


def _signature(node: ast.FunctionDef) -> str:
  arguments = copy.deepcopy(node.args)
  for part in ast.walk(arguments):
    if isinstance(part, ast.arg):
      part.annotation = None
  return f"{node.name}({ast.unparse(arguments)})"


def _says_replaces_gradient(tree: ast.Module) -> bool:
  return any(
    isinstance(node, ast.Assign)
    and ast.unparse(node.targets[0]) == "replaces_gradient"
    and ast.unparse(node.value) == "True"
    for node in tree.body
  )


def _identifiers(name: str, functions: dict[str, ast.FunctionDef]) -> frozenset[str]:
  found: set[str] = set()
  waiting, done = [name], set()
  while waiting:
    current = waiting.pop()
    done.add(current)
    used = set(_names_in(functions[current]))
    waiting += [other for other in used if other in functions and other not in done]
    found |= used
  return frozenset(found)


def _names_in(function: ast.FunctionDef) -> list[str]:
  names = []
  for node in ast.walk(function):
    match node:
      case ast.Name(id=name) | ast.arg(arg=name):
        names.append(name)
      case ast.Attribute(value=ast.Name(id=owner), attr=name):
        names.append(f"{owner}.{name}")
      case ast.Constant(value=str(name)) if name.isidentifier():
        names.append(name)
  return names
