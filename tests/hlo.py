"""Collectives of a compiled program, read from the text of its HLO."""

import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

KINDS = (
  *("all-reduce", "all-gather", "reduce-scatter", "all-to-all"),
  *("ragged-all-to-all", "collective-permute", "collective-broadcast"),
)

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.+?) ([\w\-]+)\((.*)$")
_CALLED = re.compile(
  r"(?:to_apply|calls|body|condition|branch_computations|true_computation|false_computation)"
  r"=(\{[^}]*\}|%?[\w.\-]+)"
)
_NAME = re.compile(r"[\w.\-]+")
_ARRAY = re.compile(r"\b(pred|token|[a-z]+\d+\w*)\[([\d,]*)\]")


class Collective(NamedTuple):
  """One collective of a program.

  Attributes:
    kind: such as "all-reduce".
    bytes: the size of its operands on one device.
    within: the "conditional"s and "while"s around it, the outermost first.
    computation: the name of the innermost computation, which tells branches apart.
  """

  kind: str
  bytes: int
  within: tuple[str, ...]
  computation: str


class _Instruction(NamedTuple):
  name: str
  type: str
  opcode: str
  operands: tuple[str, ...]
  called: tuple[str, ...]


def collectives(text: str) -> list[Collective]:
  """Every collective of the program `compiled.as_text()`, those in branches and loops too."""
  computations, entry = _computations(text)
  return list(_within(computations, entry, ()))


def _within(
  computations: dict[str, list[_Instruction]], name: str, path: tuple[str, ...]
) -> Iterator[Collective]:
  types = {instruction.name: instruction.type for instruction in computations[name]}
  for instruction in computations[name]:
    kind = instruction.opcode.removesuffix("-start")
    if kind in KINDS:
      size = sum(size_of(types[operand]) for operand in instruction.operands)
      yield Collective(kind, size, path, name)
      continue
    inside = (*path, kind) if kind in ("conditional", "while") else path
    for called in instruction.called:
      yield from _within(computations, called, inside)


def size_of(type_text: str) -> int:
  """The bytes of an array or tuple type, such as `(f32[8,2]{1,0}, s32[])`."""
  return sum(_item_bits(name) * _product(shape) for name, shape in _ARRAY.findall(type_text)) // 8


def _item_bits(name: str) -> int:
  if name == "token":
    return 0
  return 8 if name == "pred" else int(re.findall(r"\d+", name)[0])


def _product(shape: str) -> int:
  return int(np.prod([int(n) for n in shape.split(",") if n]))


def _computations(text: str) -> tuple[dict[str, list[_Instruction]], str]:
  """The instructions of each computation, and the name of the one that is run."""
  computations: dict[str, list[_Instruction]] = {}
  entry, current = "", ""
  for line in re.sub(r"/\*.*?\*/", "", text).splitlines():
    if start := _COMPUTATION.match(line):
      current = start[2]
      computations[current] = []
      entry = current if start[1] else entry
    elif match := _INSTRUCTION.match(line):
      computations[current].append(_instruction(*match.groups()))
  return computations, entry


def _instruction(name: str, result: str, opcode: str, rest: str) -> _Instruction:
  inside, _, attributes = rest.partition(")")
  operands = re.findall(r"%([\w.\-]+)", inside)
  called = [name for group in _CALLED.findall(attributes) for name in _NAME.findall(group)]
  return _Instruction(name, result, opcode, tuple(operands), tuple(called))
