"""What the checks of optimizers and objectives share: how they are listed and how they compare."""

import contextlib
import functools
import importlib
import inspect
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl.catalogue import Entry
from tests import tiers
from tests.cases import Row, methods_of, row_files, rows

KNOWN = {"num_examples": 16, "num_classes": 4, "num_groups": 3, "steps": 50, "epochs": 5}
"""The names that a row's spec may use."""


class Check(NamedTuple):
  """A property that every row has. `core` ones run always, on the row's one compiled step."""

  name: str
  run: Callable[[Any], None]
  core: bool
  devices: bool


class Checks(list[Check]):
  """The checks of one kind of method; calling it is the decorator that adds one."""

  def __call__(self, *, core: bool = False, devices: bool = False) -> Callable[..., Any]:
    def add(run):
      self.append(Check(run.__name__, run, core, devices))
      return run

    return add


def cases_of(files: Iterable[str], checks: Checks) -> list[Any]:
  """A pytest case for each row and each check, row by row."""
  return [_case(row, check, file) for file in files for row in rows(file) for check in checks]


def objective_files() -> list[str]:
  """Files with rows of objectives."""
  return [file for file in row_files() if file not in ("optimizers", "solvers")]


def entry_of(row: Row) -> Entry:
  """The catalogue's entry of the method that a row tests."""
  return _entries()[row.method]


@functools.cache
def _entries() -> dict[str, Entry]:
  return {entry.name: entry for file in row_files() for entry in methods_of(file)}


@contextlib.contextmanager
def wrapped(entry: Entry, wrapper: Callable[..., Any]) -> Iterator[None]:
  """While this lasts, specs get `wrapper(factory, *args, **kwargs)` for a method's factory."""
  module = importlib.import_module(entry.module)
  factory = getattr(module, entry.name)

  @functools.wraps(factory)
  def replacement(*args, **kwargs):
    return wrapper(factory, *args, **kwargs)

  with mock.patch.object(module, entry.name, replacement):
    yield


def static_arguments(factory: Callable[..., Any]) -> tuple[str, ...]:
  """Arguments that are no numbers: records, integers that fix shapes, flags and choices."""
  parameters = inspect.signature(factory, eval_str=True).parameters.values()
  return tuple(p.name for p in parameters if "float" not in str(p.annotation))


def stacked(trees: list[Any]) -> Any:
  """Trees of one structure as one tree, with a new first axis."""
  return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def types_of(tree: Any) -> Any:
  """Structure, shapes, dtypes and weak types of a tree."""
  leaves, structure = jax.tree.flatten(tree)
  return structure, [
    (jnp.shape(x), jnp.result_type(x), getattr(x, "weak_type", False)) for x in leaves
  ]


def assert_close(actual: Any, expected: Any, tolerance: float = 1.0) -> None:
  """Trees of one structure whose leaves agree to float32 rounding, times `tolerance`.

  Absolutely, they agree to the rounding of differences of numbers of order one, which is what
  updates of recipes are.
  """
  assert jax.tree.structure(actual) == jax.tree.structure(expected)
  for path, a, e in _pairs(actual, expected):
    size = float(np.max(np.abs(e), initial=0.0, where=np.isfinite(e)))
    np.testing.assert_allclose(
      a, e, rtol=1e-5 * tolerance, atol=tolerance * max(5e-7, 3e-6 * size), err_msg=path
    )


def assert_identical(actual: Any, expected: Any) -> None:
  """Trees of one structure whose leaves agree in every bit."""
  assert jax.tree.structure(actual) == jax.tree.structure(expected)
  for path, a, e in _pairs(actual, expected):
    np.testing.assert_array_equal(a, e, err_msg=path)


def assert_finite(tree: Any) -> None:
  """No NaN and no infinity in a tree."""
  for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
    assert np.all(np.isfinite(_numbers(leaf))), jax.tree_util.keystr(path)


def differs(first: Any, second: Any) -> bool:
  """Whether trees of one structure differ anywhere."""
  return any(not np.array_equal(a, b) for _, a, b in _pairs(first, second))


def _case(row: Row, check: Check, file: str) -> Any:
  marks: list[Any] = [pytest.mark.xdist_group("devices" if check.devices else row.spec)]
  if not check.core:
    marks += tiers.unless_changed(entry_of(row).file)
  if check.name in row.must_fail:
    marks.append(pytest.mark.xfail(reason=row.must_fail[check.name], strict=True))
  return pytest.param(row, check, marks=marks, id=f"{file}-{row.spec}-{check.name}")


def _pairs(first: Any, second: Any) -> list[tuple[str, np.ndarray, np.ndarray]]:
  leaves = jax.tree_util.tree_leaves_with_path(first)
  return [
    (jax.tree_util.keystr(path), _numbers(a), _numbers(b))
    for (path, a), b in zip(leaves, jax.tree.leaves(second), strict=True)
  ]


def _numbers(leaf: Any) -> np.ndarray:
  array = np.asarray(leaf)
  return array.astype(np.float32) if array.dtype == jnp.bfloat16 else array
