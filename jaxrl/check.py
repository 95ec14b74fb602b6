"""Clear errors for bad arguments: each names the argument, the value and what is allowed.

Only concrete Python numbers are checked. Arrays, tracers and schedules pass, so that
every hyper-parameter survives `optax.inject_hyperparams`.
"""

import numbers
import re
from collections.abc import Callable, Collection
from typing import Any


def at_least(name: str, value: Any, low: float) -> None:
  """Raises ValueError unless the number `value` is >= `low`."""
  if _is_number(value) and not value >= low:
    raise ValueError(f"{name} must be at least {low}, got {value!r}")


def above(name: str, value: Any, low: float) -> None:
  """Raises ValueError unless the number `value` is > `low`."""
  if _is_number(value) and not value > low:
    raise ValueError(f"{name} must be above {low}, got {value!r}")


def between(name: str, value: Any, low: float, high: float) -> None:
  """Raises ValueError unless the number `value` lies in [`low`, `high`]."""
  if _is_number(value) and not low <= value <= high:
    raise ValueError(f"{name} must be in [{low}, {high}], got {value!r}")


def below(name: str, value: Any, low: float, high: float) -> None:
  """Raises ValueError unless the number `value` lies in [`low`, `high`)."""
  if _is_number(value) and not low <= value < high:
    raise ValueError(f"{name} must be in [{low}, {high}), got {value!r}")


def whole(name: str, value: Any, low: int) -> None:
  """Raises ValueError unless `value` is a Python integer >= `low`."""
  if not isinstance(value, numbers.Integral) or isinstance(value, bool) or value < low:
    raise ValueError(f"{name} must be a whole number of at least {low}, got {value!r}")


def one_of(name: str, value: Any, allowed: Collection[Any]) -> None:
  """Raises ValueError unless `value` is among `allowed`."""
  if value not in allowed:
    raise ValueError(f"{name} must be one of {sorted(allowed)}, got {value!r}")


def record(name: str, value: Any, kind: type) -> None:
  """Raises TypeError unless `value` is a `kind`, a NamedTuple of functions."""
  if not isinstance(value, kind):
    raise TypeError(f"{name} must be a {kind.__name__}, got {value!r}")


def regex(name: str, value: Any) -> re.Pattern[str]:
  """The regular expression `value`, compiled; ValueError if it is none."""
  try:
    return re.compile(value)
  except (re.error, OverflowError, RecursionError, TypeError) as error:
    raise ValueError(f"{name} must be a regular expression, got {value!r}: {error}") from error


def value_fn(method: str, function: Callable[..., Any] | None) -> Callable[..., Any]:
  """`function`, the loss of this step's batch; TypeError if `update` was not given it."""
  if not callable(function):
    raise TypeError(
      f"{method} evaluates the loss away from params: call update(..., value_fn=f), "
      f"f(params) being the loss of this step's batch; got value_fn={function!r}"
    )
  return function


def params(method: str, tree: Any) -> Any:
  """`tree`, the parameters; ValueError when `update` was called without them."""
  if tree is None:
    raise ValueError(f"{method} needs the parameters: call update(gradient, state, params)")
  return tree


def array(method: str, name: str, value: Any) -> Any:
  """`value`, an array that `method` takes from the batch; ValueError if it has none."""
  if value is None:
    raise ValueError(f"{method} needs `{name}`: the batch and the model give none")
  return value


def _is_number(value: Any) -> bool:
  return isinstance(value, numbers.Real) and not isinstance(value, bool)
