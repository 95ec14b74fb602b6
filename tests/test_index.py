"""INDEX.md is current, and says what the docstrings and the code say."""

import subprocess
import sys

import pytest

from jaxrl.catalogue import DIAGNOSTICS, PACKAGES, Entry, catalogue, duplicates
from scripts import index

ENTRIES = [pytest.param(entry, id=entry.name) for entry in catalogue(PACKAGES + DIAGNOSTICS)]


def entry(name="sgd", file="optimizers/sgd.py", kind="gradient transformation", **fields):
  empty = Entry(name, "", file, kind, "", f"{name}()", False, "", frozenset())
  return empty._replace(**fields)


def cells(*entries):
  """The rows of an index of `entries`, without heads and rules."""
  lines = index.index(entries).splitlines()
  rows = [line.strip("| ").split(" | ") for line in lines if line.startswith("|")]
  return [row for row in rows if row[0] not in (index.COLUMNS[0], "---")]


def test_the_index_is_current():
  assert index.main(["--check"]) == 0


def test_check_fails_when_stale_and_writing_mends_it(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(index, "FILE", tmp_path / "INDEX.md")
  assert index.main(["--check"]) == 1  # there is none
  assert "stale" in capsys.readouterr().err
  assert index.main([]) == 0
  assert index.main(["--check"]) == 0
  index.FILE.write_text(index.FILE.read_text() + "more\n")
  assert index.main(["--check"]) == 1


def test_it_imports_no_jax():
  code = "import sys, scripts.index as i; i.main(['--check']); assert 'jax' not in sys.modules"
  subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("entry", ENTRIES)
def test_every_function_has_references_that_can_be_read(entry):
  assert "References:\n" in entry.docstring
  found = index.reference(entry.docstring)
  assert found.title or not found.number, f"{entry.file}: write the title in double quotes"


def test_references():
  text = """One line.

References:
  Baseline; Someone, "Before", 1999
  [12] First, Second, "A Title that Goes on
    in the Next Line", 2020,
    arXiv:2010.01412
  [13] Third, "Other", 2021, arXiv:2101.00001

Example:
  >>> "[14]"
"""
  assert index.reference(text) == ("[12]", "A Title that Goes on in the Next Line", "2010.01412")
  assert index.reference('References:\n  Them, "Old", 1997, arXiv:cs/9712001') == (
    "",
    "Old",
    "cs/9712001",
  )
  assert index.reference("References:\n  Baseline.") == ("", "", "")
  assert index.reference("No section.") == ("", "", "")


def test_needs():
  def of(*identifiers, **fields):
    return index.needs(entry(identifiers=frozenset(identifiers), **fields))

  assert of("learning_rate") == []
  assert of("value_fn") == of(replaces_gradient=True) == ["value_fn"]
  assert of("value_fn", "oracle.need_oracle", "value_fn.losses") == ["Oracle: losses"]
  assert of("axis_name") == ["axis_name"]
  assert of("labels", "logits", "mask", "group.size", kind="loss") == ["logits", "labels"]
  memory = of("index", "num_examples", kind="objective")
  assert memory == ["index", "memory of all examples"]


def test_diagnostics_need_their_arguments_without_a_default():
  found = {entry.name: entry for entry in catalogue(DIAGNOSTICS)}
  assert found["linear_path"].file == "jaxrl/diagnostics/linear_path.py"
  assert index.needs(found["linear_path"]) == ["loss", "start", "end", "fractions"]
  assert index.needs(found["module_criticality"]) == ["loss", "params"]
  assert duplicates(PACKAGES + DIAGNOSTICS) == {}


def test_rows():
  full = entry(
    summary=r"Least :math:`|x|` or \a.",
    docstring='References:\n  [7] A, "B | C", 2020, arXiv:2001.00001',
    replaces_gradient=True,
  )
  nested = entry("top_k", "optimizers/compressors/top_k.py", "compressor")
  last = entry("yogi", "optimizers/yogi.py")
  text = index.index((full, nested, last))
  assert text.count("## optimizers\n") == 1 and text.count("## optimizers/compressors\n") == 1
  arxiv, file = "[2001.00001](https://arxiv.org/abs/2001.00001)", "[sgd.py](optimizers/sgd.py)"
  assert (
    rf"| [7] | B \| C | {arxiv} | {file} | `sgd` | Least $\vert x\vert $ or \a. | value_fn | - |"
    in text
  )
  assert [row[4] for row in cells(full, last, nested)] == ["`sgd`", "`yogi`", "`top_k`"]
