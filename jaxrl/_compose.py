"""What specs are made of: parts, their chains and sums, and their restriction by `where`."""

import functools
import re
from collections.abc import Iterator
from typing import Any, NamedTuple, TypeGuard

import jax
import optax

from . import oracle
from .catalogue import (
  BATCH_TRANSFORM,
  GRADIENT_TRANSFORMATION,
  LOSS,
  LOSS_TRANSFORM,
  OBJECTIVE,
)

SUM = "weighted sum"
_MAX_QUOTED = 120
_MINIMISED = (LOSS, OBJECTIVE, SUM)


class SpecError(ValueError):
  """A spec that cannot be read; the message is one line."""

  def __init__(self, message: str):
    super().__init__(" ".join(message.split()))


class Part(NamedTuple):
  """What a call, a chain or a sum came to.

  The value of a weighted sum is a tuple of `(weight, Objective)`. `recipe` says that there
  is a learning rate inside, `replaces` that what stands before it in a chain is thrown away.
  """

  kind: str
  name: str
  value: Any
  recipe: bool = False
  replaces: bool = False


def plain(value: Any) -> Any:
  """What a function is handed: the values of parts, at any depth of lists and dicts."""
  match value:
    case Part(kind=kind):
      return oracle.weighted_sum(value.value) if kind == SUM else value.value
    case list() | tuple():
      return type(value)(plain(item) for item in value)
    case dict():
      return {key: plain(item) for key, item in value.items()}
  return value


def parts_in(value: Any) -> Iterator[Part]:
  """The parts in lists and dicts, at any depth."""
  match value:
    case Part():
      yield value
    case list() | tuple():
      for item in value:
        yield from parts_in(item)
    case dict():
      yield from parts_in(list(value.values()))


def described(value: Any) -> str:
  """A phrase for error messages."""
  if isinstance(value, Part):
    return f"{value.name} is a {value.kind}"
  return f"got {quoted(repr(value))}"


def quoted(text: str) -> str:
  """`text`, cut to a length that fits an error message."""
  return text if len(text) <= _MAX_QUOTED else text[: _MAX_QUOTED - 3] + "..."


def chain(parts: list[Part]) -> Part:
  """`first | second | ...`: one gradient transformation, or one objective."""
  kinds = {part.kind for part in parts}
  if kinds == {GRADIENT_TRANSFORMATION}:
    return _optimizer(parts)
  if GRADIENT_TRANSFORMATION in kinds:
    raise SpecError(f"optimizers and objectives do not chain: {_listed(parts)}")
  return Part(OBJECTIVE, _joined(parts), objective(parts))


def _optimizer(parts: list[Part]) -> Part:
  for part in parts[1:]:
    if part.replaces:
      raise SpecError(f"{part.name} throws away what stands before it: it must come first")
  return Part(
    GRADIENT_TRANSFORMATION,
    _joined(parts),
    optax.chain(*(part.value for part in parts)),
    recipe=any(part.recipe for part in parts),
    replaces=parts[0].replaces,
  )


def objective(parts: list[Part]) -> oracle.Objective:
  """Batch transforms, then one loss, objective or sum, then loss transforms."""
  minimised = [i for i, part in enumerate(parts) if part.kind in _MINIMISED]
  if len(minimised) != 1:
    hint = "join losses by +, not |" if minimised else "add one, such as cross_entropy()"
    raise SpecError(f"an objective needs one loss: {_listed(parts)}; {hint}")
  before, after = parts[: minimised[0]], parts[minimised[0] + 1 :]
  _require(BATCH_TRANSFORM, before, "before")
  _require(LOSS_TRANSFORM, after, "behind")
  made = _lifted(parts[minimised[0]])
  for part in after:
    made = oracle.transform_losses(made, part.value)
  for part in reversed(before):
    made = oracle.transform_batch(part.value, made)
  return made


def _require(kind: str, parts: list[Part], place: str) -> None:
  for part in parts:
    if part.kind != kind:
      raise SpecError(f"{described(part)}: it cannot stand {place} the loss, only a {kind} can")


def _lifted(part: Part) -> oracle.Objective:
  return oracle.lift(part.value) if part.kind == LOSS else plain(part)


def is_minimised(value: Any) -> TypeGuard[Part]:
  """Whether weights and sums make sense: a loss, an objective or a sum of them."""
  return isinstance(value, Part) and value.kind in _MINIMISED


def scaled(factor: float, part: Part) -> Part:
  """`factor * part`."""
  terms = part.value if part.kind == SUM else ((1, _lifted(part)),)
  return Part(SUM, part.name, tuple((factor * weight, term) for weight, term in terms))


def added(left: Part, right: Part) -> Part:
  """`left + right`."""
  terms = scaled(1, left).value + scaled(1, right).value
  return Part(SUM, f"{left.name} + {right.name}", terms)


def restricted(part: Part, where: Any) -> Part:
  """`part` on the parameters that `where` finds; the rest passes, or stays if a recipe."""
  if part.kind != GRADIENT_TRANSFORMATION:
    raise SpecError(f"where= restricts gradient transformations; {described(part)}")
  if not isinstance(where, str):
    raise SpecError(f"where= must be a regular expression, got {where!r}")
  try:
    found = functools.partial(_matches, re.compile(where))
  except (re.error, OverflowError, RecursionError) as error:
    raise SpecError(f"where={where!r} is not a regular expression: {error}") from error
  if not part.recipe:
    return part._replace(value=optax.masked(part.value, found))

  def labels(tree):
    return jax.tree.map(lambda chosen: "chosen" if chosen else "rest", found(tree))

  split = optax.partition({"chosen": part.value, "rest": optax.set_to_zero()}, labels)
  return part._replace(value=split)


def _matches(pattern: re.Pattern[str], tree: Any) -> Any:
  """A tree of booleans: which paths `pattern` finds. Raises ValueError if it finds none."""
  flat, structure = jax.tree.flatten_with_path(tree)
  paths = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in flat]
  found = [pattern.search(path) is not None for path in paths]
  if not any(found):
    some = ", ".join(paths[:5]) + (", ..." if len(paths) > 5 else "")
    raise ValueError(f"where={pattern.pattern!r} matches no parameter; there are: {some or 'none'}")
  return jax.tree.unflatten(structure, found)


def _joined(parts: list[Part]) -> str:
  return " | ".join(part.name for part in parts)


def _listed(parts: list[Part]) -> str:
  return ", ".join(f"{part.name} ({part.kind})" for part in parts)
