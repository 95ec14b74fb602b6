"""Expected values from elsewhere: each `.json` beside the script that computed it."""

import json
from pathlib import Path
from typing import Any

import numpy as np


def load(name: str) -> Any:
  """The values of `<name>.json`, its lists of numbers as arrays."""
  text = (Path(__file__).parent / f"{name}.json").read_text(encoding="utf-8")
  return _arrays(json.loads(text))


def _arrays(node: Any) -> Any:
  if isinstance(node, dict):
    return {key: _arrays(value) for key, value in node.items()}
  if isinstance(node, list) and node and isinstance(node[0], dict):
    return [_arrays(value) for value in node]
  return np.array(node) if isinstance(node, list) else node
