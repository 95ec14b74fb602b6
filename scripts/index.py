"""Writes INDEX.md, the table of all methods, from the source files; imports none of them.

python -m scripts.index           writes the file
python -m scripts.index --check   exits with 1 if it is not up to date
"""

import argparse
import ast
import itertools
import pathlib
import re
import sys
import textwrap
from collections.abc import Mapping
from typing import NamedTuple

from jaxrl import catalogue
from jaxrl.catalogue import Entry
from scripts.evidence import _results

FILE = pathlib.Path(__file__).parent.parent / "INDEX.md"
HEAD = """\
# Index

Every method, by folder. Written by `python -m scripts.index` from the docstrings and
signatures; change those, not this file.

*Needs* is what a method must be handed beyond gradients, parameters and hyper-parameters:
optimizers `value_fn` (the loss of this step's batch) or an `Oracle` and its parts, objectives
arrays of the batch and of the model's outputs, solvers and diagnostics all arguments without a
default.
*Evidence* is the verdict of an experiment on what the paper claims
([how](docs/evidence/README.md)), or `stale` where a file has changed since.
"""
COLUMNS = ("id", "paper", "arXiv", "file", "name", "what it does", "needs", "evidence")
_OPTIONAL = {"mask"}
_ORACLE_PARTS = ("outputs", "loss_of", "losses")


class Reference(NamedTuple):
  """The paper behind a method; empty where a docstring does not say."""

  number: str = ""
  title: str = ""
  arxiv: str = ""


def main(arguments: list[str] | None = None) -> int:
  """Writes or checks the index; returns the exit status."""
  parser = argparse.ArgumentParser(prog="python -m scripts.index", description=__doc__)
  parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if stale")
  check = parser.parse_args(arguments).check
  text = index(catalogue.catalogue(catalogue.PACKAGES + catalogue.DIAGNOSTICS))
  if not check:
    FILE.write_text(text, encoding="utf-8")
  elif not FILE.exists() or FILE.read_text(encoding="utf-8") != text:
    print(f"{FILE.name} is stale: run `python -m scripts.index`", file=sys.stderr)
    return 1
  return 0


def index(entries: tuple[Entry, ...]) -> str:
  """The whole file: a table for each folder."""
  parts, evidence = [HEAD], _results.by_method()
  for folder, members in itertools.groupby(sorted(entries, key=_folder), _folder):
    methods = (_row(member, evidence.get(member.name, {})) for member in members)
    rows = [COLUMNS, ("---",) * len(COLUMNS), *methods]
    parts.append(f"## {folder}\n\n" + "".join(f"| {' | '.join(row)} |\n" for row in rows))
  return "\n".join(parts)


def reference(docstring: str) -> Reference:
  """The first reference with an id in brackets, else the first, of a References section.

  A reference begins at the section's indentation, and its other lines are indented further:
  `[183] Authors, "Title", year, arXiv:2010.01412`. A baseline has no id.
  """
  section = re.search(r"^References:\n((?:[ ]+.*\n|\n)*)", docstring + "\n", re.MULTILINE)
  lines = textwrap.dedent(section[1]) if section else ""
  entries = [" ".join(entry.split()) for entry in re.split(r"\n(?=\S)", lines) if entry.strip()]
  numbered = [entry for entry in entries if entry.startswith("[")]
  for entry in numbered or entries:
    return Reference(
      _first(r"^(\[\d+\])", entry),
      _first(r'"(.+?)"', entry),
      _first(r"arXiv:([\w.\-]+/\d{7}|\d{4}\.\d{4,5})", entry),
    )
  return Reference()


def needs(entry: Entry) -> list[str]:
  """What a method must be handed, from the names in its code."""
  if entry.kind == catalogue.GRADIENT_TRANSFORMATION:
    return _optimizer_needs(entry)
  if entry.file.startswith("jaxrl/") or entry.kind == catalogue.SOLVER:
    return _required(entry)
  found = [name for name in catalogue.GLOSSARY if name in entry.identifiers - _OPTIONAL]
  if entry.kind == catalogue.OBJECTIVE and "num_examples" in entry.identifiers:
    found.append("memory of all examples")
  return found


def _required(entry: Entry) -> list[str]:
  """The positional arguments without a default."""
  function = ast.parse(f"def {entry.signature}: ...").body[0]
  assert isinstance(function, ast.FunctionDef)
  arguments = function.args
  names = [argument.arg for argument in (*arguments.posonlyargs, *arguments.args)]
  return names[: len(names) - len(arguments.defaults)]


def _optimizer_needs(entry: Entry) -> list[str]:
  local = ["axis_name"] if "axis_name" in entry.identifiers else []
  if entry.identifiers & {"need_oracle", "oracle.need_oracle"}:
    parts = [part for part in _ORACLE_PARTS if f"value_fn.{part}" in entry.identifiers]
    return [" ".join(["Oracle:", *parts]) if parts else "Oracle", *local]
  closure = entry.replaces_gradient or "value_fn" in entry.identifiers
  return [*(["value_fn"] if closure else []), *local]


def _row(entry: Entry, verdicts: Mapping[str, str]) -> tuple[str, ...]:
  paper = reference(entry.docstring)
  arxiv = f"[{paper.arxiv}](https://arxiv.org/abs/{paper.arxiv})" if paper.arxiv else ""
  summary = re.sub(r":math:`([^`]*)`", _math, entry.summary)
  file = f"[{pathlib.PurePosixPath(entry.file).name}]({entry.file})"
  evidence = (f"[{v}](docs/evidence/README.md#{name})" for name, v in verdicts.items())
  cells = (paper.number, paper.title, arxiv, file, f"`{entry.name}`", summary)
  cells = (*cells, ", ".join(needs(entry)), ", ".join(evidence))
  return tuple(cell.replace("|", r"\|") or "-" for cell in cells)


def _math(found: re.Match[str]) -> str:
  return "$" + found[1].replace(r"\|", r"\Vert ").replace("|", r"\vert ") + "$"


def _folder(entry: Entry) -> str:
  return str(pathlib.PurePosixPath(entry.file).parent)


def _first(pattern: str, text: str) -> str:
  found = re.search(pattern, text)
  return found[1] if found else ""


if __name__ == "__main__":
  sys.exit(main())
