"""Strings to transforms: `"sam(rho=0.05) | adamw(1e-3)"`, `"cross_entropy() | z_error()"`.

A spec is a restricted Python expression: calls of methods by name, literals, arithmetic on
numbers, `|` for a chain, and `+`, `-` and number `*` for weighted sums of objectives (`-`
gives a negative weight). It is parsed and read, never evaluated.

A name is a public function of our files, found without importing them, or one of optax:
bare (`adam`) or dotted (`optax.contrib.sam`). What a function is, its signature says (see
`jaxrl.catalogue`). Arguments that `train` knows (`NAMES`) may be written as names, and those
that a method of ours requires may be left out.

`where="kernel$"` on a gradient transformation keeps it to the parameters whose path
(`dense_0/kernel`) the regular expression finds. The others pass through unchanged, or, where
a learning rate is inside, get zero updates.
"""

import ast
import collections.abc
import difflib
import functools
import importlib
import inspect
import math
import operator
import types
import typing
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeGuard

import optax

from . import _compose, oracle
from ._compose import Part, SpecError, quoted
from .catalogue import (
  GLOSSARY,
  GRADIENT_TRANSFORMATION,
  LOSS,
  OTHER,
  PACKAGES,
  SCHEDULE,
  Entry,
  catalogue,
)

NAMES = ("num_examples", "num_classes", "num_groups", "steps", "epochs")
REPLACEMENTS = ("sam", "squared_error")

# Recipes of optax that call their learning rate otherwise.
_OTHER_RECIPES = ("polyak_sgd", "optax.polyak_sgd")

_MAX_LENGTH = 2000
_MAX_DEPTH = 100
_MAX_NUMBER = 1e100

_OPTAX = ("optax", "optax.contrib", "optax.losses", "optax.schedules", "optax.transforms")
_VALUE = "value"
_ARITHMETIC = {
  ast.Add: operator.add,
  ast.Sub: operator.sub,
  ast.Mult: operator.mul,
  ast.Div: operator.truediv,
  ast.Pow: operator.pow,
}


def optimizer(
  text: str, *, packages: Sequence[str] = PACKAGES, **names: int | None
) -> optax.GradientTransformationExtraArgs:
  """The gradient transformation that `text` describes.

  Args:
    text: calls joined by `|`, such as `"clip_by_global_norm(1.0) | adam(1e-3)"`.
    packages: where our methods are.
    **names: the values of `NAMES`, as far as they are known.

  Returns:
    The element itself, or an `optax.chain` of several.

  Raises:
    SpecError: the text is not a spec of an optimizer.

  Example:
    >>> made = optimizer("clip(1.0) | sgd(linear_schedule(1.0, 0.0, steps))", steps=10)
    >>> params = {"w": 5.0}
    >>> made.update({"w": 3.0}, made.init(params), params)[0]["w"].item()
    -1.0
  """
  found = _read(text, packages, names)
  if not isinstance(found, Part) or found.kind != GRADIENT_TRANSFORMATION:
    raise SpecError(f"an optimizer needs gradient transformations; {_compose.described(found)}")
  return optax.with_extra_args_support(found.value)


def objective(
  text: str, *, packages: Sequence[str] = PACKAGES, **names: int | None
) -> oracle.Objective:
  """The objective that `text` describes.

  Args:
    text: batch transforms, one loss (or objective, or sum of them) and loss transforms,
      joined by `|`, such as `"mixup() | cross_entropy() | z_error(tau=2)"`.
    packages: where our methods are.
    **names: the values of `NAMES`, as far as they are known.

  Returns:
    The pair `(init, apply)` that a train step sees.

  Raises:
    SpecError: the text is not a spec of an objective.

  Example:
    >>> import jax, jax.numpy as jnp
    >>> made = objective("0.5 * softmax_cross_entropy()")
    >>> batch = {"inputs": jnp.zeros((1, 2)), "labels": jnp.array([[1.0, 0.0]])}
    >>> key = jax.random.key(0)
    >>> (term,), _, _ = made.apply(made.init(key), jnp.exp, batch, key)
    >>> print(f"{term.values[0]:.4f}")  # log(2) / 2
    0.3466
  """
  found = _read(text, packages, names)
  if not isinstance(found, Part) or found.kind == GRADIENT_TRANSFORMATION:
    raise SpecError(f"an objective needs one loss; {_compose.described(found)}")
  return _compose.objective([found])


def axis_names(text: str) -> set[str]:
  """The mesh axes that calls in a spec name as their `axis_name`.

  Example:
    >>> axis_names("ef21(top_k(0.01), axis_name='data') | sgd(0.1)")
    {'data'}
  """
  calls = [node for node in ast.walk(_parse(text)) if isinstance(node, ast.Call)]
  values = [word.value for call in calls for word in call.keywords if word.arg == "axis_name"]
  return {
    node.value
    for value in values
    for node in ast.walk(value)
    if isinstance(node, ast.Constant) and isinstance(node.value, str)
  }


def clashes(packages: Sequence[str] = PACKAGES) -> list[str]:
  """Names of ours that hide a public name of optax and are not in `REPLACEMENTS`."""
  public = {name for module in _OPTAX for name in vars(importlib.import_module(module))}
  ours = {entry.name for entry in catalogue(tuple(packages))}
  return sorted((ours & public) - set(REPLACEMENTS))


class _Function(NamedTuple):
  """What a name stands for: something to call, or a loss whose hyper-parameters to bind."""

  kind: str
  call: Callable[..., Any]
  signature: inspect.Signature
  shown: str
  ours: bool = False
  replaces: bool = False


def _read(text: str, packages: Sequence[str], names: dict[str, int | None]) -> Any:
  unknown = set(names) - set(NAMES)
  if unknown:
    raise TypeError(f"names must be among {NAMES}, got {sorted(unknown)}")
  known = {name: value for name, value in names.items() if value is not None}
  return _Reader(tuple(packages), known).read(_parse(text))


def _parse(text: str) -> ast.expr:
  if len(text) > _MAX_LENGTH:
    raise SpecError(f"a spec has at most {_MAX_LENGTH} characters, this one has {len(text)}")
  try:
    with warnings.catch_warnings():
      warnings.simplefilter("ignore")  # "\d" in a regular expression is meant
      tree = ast.parse(text.strip(), mode="eval").body
  except SyntaxError as error:
    raise SpecError(f"{error.msg} in {quoted(repr(text))}") from error
  except (ValueError, RecursionError, MemoryError) as error:
    raise SpecError(f"{error or 'too deeply nested'} in {quoted(repr(text))}") from error
  _bound_depth(tree, text)
  return tree


def _bound_depth(tree: ast.expr, text: str) -> None:
  waiting: list[tuple[ast.AST, int]] = [(tree, 0)]
  while waiting:
    node, depth = waiting.pop()
    if depth > _MAX_DEPTH:
      raise SpecError(f"{quoted(repr(text))} is nested more than {_MAX_DEPTH} deep")
    waiting += [(child, depth + 1) for child in ast.iter_child_nodes(node)]


class _Reader:
  """Reads a syntax tree: plain values stay Python values, all else becomes a `Part`."""

  def __init__(self, packages: tuple[str, ...], names: dict[str, int]):
    self._packages = packages
    self._names = names

  def read(self, node: ast.expr) -> Any:
    match node:
      case ast.Constant():
        return _literal(node)
      case ast.List(elts=items):
        return [self.read(item) for item in items]
      case ast.Tuple(elts=items):
        return tuple(self.read(item) for item in items)
      case ast.Dict():
        return {_key(key, node): self.read(value) for key, value in _pairs(node)}
      case ast.UnaryOp(op=ast.USub()):
        return _combined(ast.Mult(), -1, self.read(node.operand), node)
      case ast.BinOp(op=ast.BitOr()):
        return _compose.chain([self._element(operand) for operand in _operands(node)])
      case ast.BinOp():
        return _combined(node.op, self.read(node.left), self.read(node.right), node)
      case ast.Name() | ast.Attribute():
        return self._bare(node)
      case ast.Call():
        return self._call(node)
    raise _not_allowed(type(node).__name__, node)

  def _element(self, node: ast.expr) -> Part:
    value = self.read(node)
    if not isinstance(value, Part):
      raise SpecError(f"a chain joins calls, got {_source(node)}")
    return value

  def _bare(self, node: ast.expr) -> Any:
    name = _dotted(node)
    if name in self._names:
      return self._names[name]
    if name in NAMES:
      raise SpecError(f"{name} is not known here: write a number")
    self._find(name)
    raise SpecError(f"{name} needs brackets: {name}()")

  def _call(self, node: ast.Call) -> Part:
    name = _dotted(node.func)
    function = self._find(name)
    if function.call is optax.chain and node.args and not node.keywords:
      return _compose.chain([self._element(argument) for argument in node.args])
    args = [self.read(argument) for argument in node.args]
    kwargs = {key: self.read(value) for key, value in _keywords(node)}
    where = None if "where" in function.signature.parameters else kwargs.pop("where", None)
    kwargs |= self._known(function, args, kwargs)
    part = _made(name, function, args, kwargs, node)
    return part if where is None else _compose.restricted(part, where)

  def _known(self, function: _Function, args: list[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The required arguments that were left out and are known; checks all arguments."""
    try:
      given = function.signature.bind_partial(*args, **kwargs).arguments
      known = {
        name: self._names[name]
        for name, parameter in function.signature.parameters.items()
        if parameter.default is parameter.empty and name in self._names and name not in given
      }
      known = known if function.ours else {}
      _check_numbers(function.signature.bind(*args, **kwargs, **known))
    except TypeError as error:
      arrays = ", its arrays come from batch and model" if function.kind == LOSS else ""
      raise SpecError(f"{error}: {function.shown}{arrays}") from error
    return known

  def _find(self, name: str) -> _Function:
    entries = [entry for entry in catalogue(self._packages) if entry.name == name]
    if len(entries) > 1:
      raise SpecError(f"{name} is ambiguous: {', '.join(entry.file for entry in entries)}")
    if entries:
      return _our_function(entries[0])
    if name in _optax_functions():
      return _optax_function(name)
    ours = [entry.name for entry in catalogue(self._packages)]
    near = difflib.get_close_matches(name, {*ours, *_optax_functions(), *NAMES})
    hint = f"; did you mean {', '.join(near)}?" if near else ""
    raise SpecError(f"there is no {quoted(name)}{hint}")


def _our_function(entry: Entry) -> _Function:
  if entry.kind == OTHER:
    raise SpecError(f"{entry.signature} of {entry.file} cannot stand in a spec: call it in Python")
  call = getattr(importlib.import_module(entry.module), entry.name)
  signature = inspect.signature(call)
  if entry.kind == LOSS:
    signature = _hyper_parameters(entry.name, signature)
  return _Function(
    entry.kind, call, signature, entry.signature, ours=True, replaces=entry.replaces_gradient
  )


@functools.cache
def _optax_functions() -> dict[str, Callable[..., Any]]:
  """Optax's public functions by dotted and by bare name; of one bare name, the first."""
  functions: dict[str, Callable[..., Any]] = {}
  for module in _OPTAX:
    for name, value in vars(importlib.import_module(module)).items():
      if _is_public_function(name, value):
        functions[f"{module}.{name}"] = value
        functions.setdefault(name, value)
  return functions


def _is_public_function(name: str, value: Any) -> bool:
  """Functions of optax itself; what it re-exports from its `tree_utils` works on arrays."""
  function = value.func if isinstance(value, functools.partial) else value
  return (
    isinstance(function, types.FunctionType)
    and not name.startswith("_")
    and not function.__module__.startswith("optax.tree_utils")
  )


def _optax_function(name: str) -> _Function:
  call = _optax_functions()[name]
  signature = inspect.signature(call)
  bare = [p.replace(annotation=p.empty) for p in signature.parameters.values()]
  shown = name + quoted(str(inspect.Signature(bare)))
  if {"logits", "labels"} & {p.name for p in bare if p.kind != p.KEYWORD_ONLY}:
    return _Function(LOSS, call, _hyper_parameters(name, signature), shown)
  if not _makes_something(signature.return_annotation):
    raise SpecError(f"{shown} returns arrays: it cannot stand in a spec")
  kind = SCHEDULE if signature.return_annotation == optax.Schedule else _VALUE
  return _Function(kind, call, signature, shown)


def _makes_something(returned: Any) -> bool:
  """Whether an annotation of optax is missing, a function or a gradient transformation."""
  if isinstance(returned, type):
    return returned is inspect.Signature.empty or issubclass(returned, optax.GradientTransformation)
  return typing.get_origin(returned) is collections.abc.Callable


def _hyper_parameters(name: str, signature: inspect.Signature) -> inspect.Signature:
  """What a spec may bind of a loss: all but the arrays, which come from batch and model."""
  parameters = list(signature.parameters.values())
  arrays = [p for p in parameters if p.default is p.empty and p.kind != p.KEYWORD_ONLY]
  foreign = [p.name for p in arrays if p.name not in GLOSSARY]
  if foreign:
    raise SpecError(f"{name} cannot stand in a spec: nothing gives it {', '.join(foreign)}")
  rest = [p.replace(kind=p.KEYWORD_ONLY) for p in parameters if p not in arrays]
  return inspect.Signature(rest)


def _check_numbers(bound: inspect.BoundArguments) -> None:
  """Raises TypeError where text, a list or a method stands for a number; few functions look."""
  for name, value in bound.arguments.items():
    parameter = bound.signature.parameters[name]
    variadic = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    if not variadic and _is_no_number(value) and _takes_only_numbers(parameter.annotation):
      raise TypeError(f"{name} takes a number; {_compose.described(value)}")


def _is_no_number(value: Any) -> bool:
  if isinstance(value, Part):
    return value.kind not in (SCHEDULE, _VALUE)
  return isinstance(value, str | list | tuple | dict)


def _takes_only_numbers(annotation: Any) -> bool:
  """Whether all that `annotation` allows are numbers, arrays and schedules."""
  is_union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
  allowed = typing.get_args(annotation) if is_union else (annotation,)
  return bool({int, float} & {*allowed}) and all(
    typing.get_origin(kind) is collections.abc.Callable
    or (isinstance(kind, type) and not issubclass(kind, str | list | tuple | dict))
    for kind in allowed
  )


def _made(
  name: str, function: _Function, args: list[Any], kwargs: dict[str, Any], node: ast.Call
) -> Part:
  given, named = _compose.plain(args), _compose.plain(kwargs)
  if function.kind == LOSS:
    return Part(LOSS, name, functools.partial(function.call, **named))
  try:
    value = function.call(*given, **named)
  except Exception as error:  # optax answers bad values with errors of any type
    raise SpecError(f"{_source(node)}: {error or type(error).__name__}") from error
  is_element = isinstance(value, optax.GradientTransformation)
  return Part(
    kind=GRADIENT_TRANSFORMATION if is_element and not function.ours else function.kind,
    name=name,
    value=value,
    recipe=name in _OTHER_RECIPES
    or "learning_rate" in function.signature.parameters
    or any(part.recipe for part in _compose.parts_in([args, kwargs])),
    replaces=function.replaces,
  )


def _combined(operation: ast.operator, left: Any, right: Any, node: ast.expr) -> Any:
  """Arithmetic on numbers; weighted sums of objectives."""
  if _is_number(left) and _is_number(right):
    return _arithmetic(operation, left, right, node)
  match operation:
    case ast.Mult() if _is_number(left) and _compose.is_minimised(right):
      return _compose.scaled(left, right)
    case ast.Mult() if _is_number(right) and _compose.is_minimised(left):
      return _compose.scaled(right, left)
    case ast.Add() if _compose.is_minimised(left) and _compose.is_minimised(right):
      return _compose.added(left, right)
    case ast.Sub() if _compose.is_minimised(left) and _compose.is_minimised(right):
      return _compose.added(left, _compose.scaled(-1, right))
  raise SpecError(f"cannot compute {_source(node)}: neither numbers nor a weighted sum of losses")


def _arithmetic(operation: ast.operator, left: float, right: float, node: ast.expr) -> float:
  compute = _ARITHMETIC.get(type(operation))
  if compute is None:
    raise _not_allowed(type(operation).__name__, node)
  try:
    size = compute(float(left), float(right))  # bounds the exact result before it is computed
  except (OverflowError, ZeroDivisionError):
    size = math.inf
  _bound_number(size, node)
  return compute(left, right)


def _bound_number(value: Any, node: ast.expr) -> None:
  if isinstance(value, complex) or not abs(value) <= _MAX_NUMBER:
    raise SpecError(f"{_source(node)} is not a real number up to {_MAX_NUMBER}")


def _is_number(value: Any) -> TypeGuard[float]:
  return isinstance(value, int | float) and not isinstance(value, bool)


def _literal(node: ast.Constant) -> Any:
  value = node.value
  if _is_number(value):
    _bound_number(value, node)
  elif value is not None and not isinstance(value, bool | str):
    raise _not_allowed(type(value).__name__, node)
  return value


def _pairs(node: ast.Dict) -> Iterator[tuple[ast.expr | None, ast.expr]]:
  return zip(node.keys, node.values, strict=True)


def _key(node: ast.expr | None, whole: ast.Dict) -> Any:
  if not isinstance(node, ast.Constant):
    raise SpecError(f"the keys of {_source(whole)} must be literals")
  return _literal(node)


def _keywords(node: ast.Call) -> Iterator[tuple[str, ast.expr]]:
  seen = set()
  for keyword in node.keywords:
    if keyword.arg is None:
      raise _not_allowed("**", node)
    if keyword.arg in seen:
      raise SpecError(f"{keyword.arg} is given twice in {_source(node)}")
    seen.add(keyword.arg)
    yield keyword.arg, keyword.value


def _operands(node: ast.expr) -> list[ast.expr]:
  if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
    return _operands(node.left) + _operands(node.right)
  return [node]


def _dotted(node: ast.expr) -> str:
  match node:
    case ast.Name(id=name):
      return name
    case ast.Attribute(value=inner, attr=name):
      return f"{_dotted(inner)}.{name}"
  raise SpecError(f"only names such as adam or optax.adam are called, not {_source(node)}")


def _not_allowed(what: str, node: ast.expr) -> SpecError:
  return SpecError(f"{what} is not allowed in a spec: {_source(node)}")


def _source(node: ast.expr) -> str:
  return quoted(ast.unparse(node))
