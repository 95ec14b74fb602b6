"""What a run records and shows: metrics of methods, CSV, TensorBoard, curves, progress."""

import re
from collections.abc import Iterator
from typing import Any

import jax


def collect_metrics(state: Any) -> dict[str, jax.Array]:
  """The `metrics` of every method in an optax state, as `{"method/key": scalar}`.

  A method is named after its state: the metrics of a `SamState` become `sam/...`, those
  of a second one in the same chain `sam_2/...`. Pure, for use inside a jitted step.

  Example:
    >>> from typing import NamedTuple
    >>> class TopKState(NamedTuple):
    ...   metrics: dict
    >>> collect_metrics((TopKState({"bytes_sent": 12}), (), TopKState({"bytes_sent": 8})))
    {'top_k/bytes_sent': 12, 'top_k_2/bytes_sent': 8}
  """
  collected: dict[str, jax.Array] = {}
  seen: dict[str, int] = {}
  for node in _states_with_metrics(state):
    name = _method_name(type(node))
    seen[name] = seen.get(name, 0) + 1
    prefix = name if seen[name] == 1 else f"{name}_{seen[name]}"
    collected |= {f"{prefix}/{key}": value for key, value in node.metrics.items()}
  return collected


def _has_metrics(node: Any) -> bool:
  return hasattr(node, "_fields") and isinstance(getattr(node, "metrics", None), dict)


def _states_with_metrics(tree: Any) -> Iterator[Any]:
  for node in jax.tree.leaves(tree, is_leaf=_has_metrics):
    if _has_metrics(node):
      yield node
      fields = zip(node._fields, node, strict=True)
      yield from _states_with_metrics([value for name, value in fields if name != "metrics"])


def _method_name(kind: type) -> str:
  words = re.findall(r"[A-Z]+[0-9]*(?![a-z])|[A-Z][a-z0-9]*", kind.__name__.removesuffix("State"))
  return "_".join(words).lower() or kind.__name__.lower()
