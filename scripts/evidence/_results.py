"""Results on disk: `docs/evidence/<experiment>.json`, read without importing JAX."""

import hashlib
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from jaxrl import catalogue

ROOT = pathlib.Path(__file__).parent.parent.parent
FOLDER = ROOT / "docs" / "evidence"
STALE = "stale"


def names() -> list[str]:
  """The experiments that there are, by their files."""
  return sorted(path.stem for path in pathlib.Path(__file__).parent.glob("[!_]*.py"))


def hashes(experiment: str, methods: tuple[str, ...]) -> dict[str, str]:
  """A digest of the experiment's file and of each method's, by path from the root.

  Raises:
    ValueError: there is no method of that name.
  """
  entries = catalogue.catalogue(catalogue.PACKAGES + catalogue.DIAGNOSTICS)
  files = {entry.name: entry.file for entry in entries}
  unknown = [name for name in methods if name not in files]
  if unknown:
    raise ValueError(f"methods must be in the catalogue, got {unknown}")
  own = f"scripts/evidence/{experiment}.py"
  paths = sorted({own, *(files[name] for name in methods)})
  return {path: _digest(path) for path in paths}


def read(folder: pathlib.Path = FOLDER) -> dict[str, dict[str, Any]]:
  """All results by experiment, each with a verdict that is `stale` where a file has changed."""
  found = {}
  for path in sorted(folder.glob("*.json")):
    result = json.loads(path.read_text(encoding="utf-8"))
    found[path.stem] = {**result, "current": current_verdict(result)}
  return found


def current_verdict(result: Mapping[str, Any]) -> str:
  """The verdict, or `stale` where a file that it is about is not what it was."""
  same = all(_digest(path) == digest for path, digest in result["files"].items())
  return result["verdict"] if same else STALE


def by_method(folder: pathlib.Path = FOLDER) -> dict[str, dict[str, str]]:
  """For each method with evidence, the verdicts by experiment."""
  found: dict[str, dict[str, str]] = {}
  for experiment, result in read(folder).items():
    for method in result["methods"]:
      found.setdefault(method, {})[experiment] = result["current"]
  return found


def _digest(path: str) -> str:
  file = ROOT / path
  return hashlib.sha256(file.read_bytes()).hexdigest()[:16] if file.exists() else "none"
