"""Iterates of EF21 with Top-2 on heterogeneous least squares, 5 workers, 41 steps.

From github.com/IgorSokoloff/ef21_experiments_source_code, commit 805c9d77de73, the folder
"Least squares (PL setting)". Its script reads its data where it is imported, so only its
functions are taken; `biased_diana_top_k_gd` is EF21 with full first gradients.
"""

import ast
import sys
from pathlib import Path

import numpy as np
from _official import prepare, save

FOLDER = "Least squares (PL setting)"
WORKERS, ROWS, SIZE, ENTRIES, STEPS = 5, 7, 12, 2, 41


def official(function):
  """A function of the script, together with those that it calls."""
  import least_squares_functions_fast

  source = Path(sys.argv[1], FOLDER, "bdfg_distributed_stable.py").read_text(encoding="utf-8")
  functions = [node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)]
  names = {**vars(least_squares_functions_fast), "np": np, "sys": sys}
  exec(compile(ast.Module(functions, []), "bdfg_distributed_stable.py", "exec"), names)
  return names[function]


def main():
  prepare(FOLDER)
  run = official("biased_diana_top_k_gd")
  rng = np.random.default_rng(0)
  matrices = rng.normal(size=(WORKERS, ROWS, SIZE)) * rng.uniform(0.5, 2, size=(WORKERS, 1, 1))
  targets = rng.normal(size=(WORKERS, ROWS))
  start = rng.normal(size=SIZE)
  problem = {"learning_rate": 0.05, "penalty": 0.01, "entries": ENTRIES}
  rate, penalty, _ = problem.values()

  def after(steps):  # the script takes one step more than it is told
    rest = (rate, 0.0, penalty, ENTRIES, WORKERS, 1.0, steps - 1)
    return run(start, matrices, targets, None, None, *rest)[2]

  points = np.stack([start] + [after(steps) for steps in range(1, STEPS + 1)])
  arrays = {"matrices": matrices, "targets": targets, "points": points}
  save(__file__, {**problem, **arrays})


main()
