"""Every method has a row, a value from elsewhere, arguments from the glossary and an example."""

import ast
import functools
import importlib
import inspect
from pathlib import Path

import pytest

from jaxrl import catalogue
from tests import glossary
from tests.cases import KINDS, Row, methods_of, named_at_start, names_in, row_files, rows
from tests.objective_properties import checks as objective_checks
from tests.optimizer_properties import checks as optimizer_checks
from tests.solver_properties import checks as solver_checks

ALL_ROWS = [pytest.param(row, file, id=row.spec) for file in row_files() for row in rows(file)]
ENTRIES = [pytest.param(entry, id=entry.name) for entry in catalogue.catalogue()]
IN_SPECS = [pytest.param(e, id=e.name) for e in catalogue.catalogue() if e.kind != catalogue.OTHER]
LOSSES = [pytest.param(e, id=e.name) for e in catalogue.catalogue() if e.kind == catalogue.LOSS]
METHODS = [pytest.param(m, file, id=m.name) for file in row_files() for m in methods_of(file)]


@pytest.mark.parametrize("entry", IN_SPECS)
def test_every_function_for_specs_stands_in_a_row(entry):
  shown = {name for file in row_files() for row in rows(file) for name in names_in(row.spec)}
  assert entry.name in shown, f"add a row with {entry.name} to tests/cases/"


@pytest.mark.parametrize(("method", "file"), METHODS)
def test_every_method_has_a_row_of_its_own(method, file):
  assert method.name in {row.method for row in rows(file)}, f"add a row to tests/cases/{file}.py"


@pytest.mark.parametrize(("method", "file"), METHODS)
def test_every_method_has_a_value_from_elsewhere(method, file):
  del file
  tested = {entry.name for entry in map(named_at_start, _value_tests()) if entry}
  assert method.name in tested, f"add test_{method.name}_... to tests/test_values_*.py"


@pytest.mark.parametrize("entry", ENTRIES)
def test_every_function_has_an_example(entry):
  assert ">>>" in entry.docstring, f"{entry.file}: {entry.name} needs an Example"


@pytest.mark.parametrize("entry", LOSSES)
def test_array_names_come_from_the_glossary(entry):
  function = getattr(importlib.import_module(entry.module), entry.name)
  parameters = inspect.signature(function).parameters.values()
  arrays = {p.name for p in parameters if p.kind == p.POSITIONAL_OR_KEYWORD}
  assert arrays <= set(glossary.GLOSSARY), "add new array names to tests/glossary.py"


@pytest.mark.parametrize(("row", "file"), ALL_ROWS)
def test_exceptions_of_rows_exist_and_have_reasons(row: Row, file: str):
  checks = {"optimizers": optimizer_checks, "solvers": solver_checks}.get(file, objective_checks)
  assert set(row.xfail) <= {check.name for check in checks}
  assert all(row.xfail.values())
  usual = row.tolerance == 1 and getattr(row, "batch", "micro") == "micro"
  usual = usual and getattr(row, "workers", "any") == "any"
  usual = usual and getattr(row, "falls", True) and getattr(row, "settles", True)
  assert usual or row.why, "say why"


def test_the_glossary_is_the_catalogues():
  assert set(glossary.GLOSSARY) == set(catalogue.GLOSSARY)


def test_every_folder_of_methods_has_a_file_of_rows():
  methods = [entry for entry in catalogue.catalogue() if entry.kind in KINDS]
  folders = {Path(entry.file).parent for entry in methods}
  assert {folder.name for folder in folders} == set(row_files())


@functools.cache
def _value_tests() -> frozenset[str]:
  """What follows `test_` in the names of the tests in test_values_*.py."""
  return frozenset(
    node.name.removeprefix("test_")
    for file in Path(__file__).parent.glob("test_values_*.py")
    for node in ast.parse(file.read_text(encoding="utf-8")).body
    if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
  )
