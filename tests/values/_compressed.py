"""Official distributed methods on heterogeneous least squares, 5 workers, 41 steps.

The scripts of github.com/IgorSokoloff/ef21_experiments_source_code, commit 805c9d77de73, and
github.com/IgorSokoloff/ef21_b-w_experiements_source_code, commit 4586f83dc212, read their data
where they are imported, so only their functions are taken. All run on the same problem: where
a script has logistic regression, its gradient is replaced by that of least squares.
"""

import ast
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from _official import prepare

FOLDER = "Least squares (PL setting)"
WORKERS, ROWS, SIZE, STEPS = 5, 7, 12, 41
RATE, PENALTY = 0.05, 0.01


def official(script: str, function: str) -> Callable[..., Any]:
  """A function of a script in the checkout, together with those that it calls."""
  prepare(FOLDER)
  import least_squares_functions_fast

  source = Path(sys.argv[1], script).read_text(encoding="utf-8")
  functions = [node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)]
  gradient = least_squares_functions_fast.least_squares_grad
  names = {**vars(least_squares_functions_fast), "np": np, "sys": sys, "logreg_grad": gradient}
  names["norm"] = np.linalg.norm
  exec(compile(ast.Module(functions, []), script, "exec"), names)
  return names[function]


def problem() -> dict[str, Any]:
  """Matrices and targets of the workers, and where to start."""
  rng = np.random.default_rng(0)
  matrices = rng.normal(size=(WORKERS, ROWS, SIZE)) * rng.uniform(0.5, 2, size=(WORKERS, 1, 1))
  targets = rng.normal(size=(WORKERS, ROWS))
  return {
    "matrices": matrices,
    "targets": targets,
    "start": rng.normal(size=SIZE),
    "learning_rate": RATE,
    "penalty": PENALTY,
  }


def points(after: Callable[[int], np.ndarray]) -> np.ndarray:
  """The points after each step; a script takes one step more than it is told."""
  return np.stack([after(steps) for steps in range(STEPS)])
