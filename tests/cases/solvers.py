"""Rows of `optimizers/solvers/`, on the problems of `tests/solver_problem.py`."""

from . import SolverRow

ROWS = [
  SolverRow(
    "halpern_infeasibility(rotation())",
    metric="displacement",
    evaluations=5,
    bad={"halpern_infeasibility(1.0)": "operator must be a function of the parameters, got 1.0"},
  ),
  SolverRow(
    "halpern_infeasibility(translation())",
    metric="displacement",
    evaluations=5,
    settles=False,
    why="there is no fixed point",
  ),
  SolverRow(
    "halpern_infeasibility(rotation(), anchor=False)",
    metric="displacement",
    evaluations=5,
    settles=False,
    why="a rotation keeps the residual's length",
  ),
  SolverRow(
    "vr_halpern(least_squares(), smoothness=1.0)",
    metric="estimate",
    evaluations=8,
    bad={
      "vr_halpern(rotation(), 1.0)": "problem must be a FiniteSum, got",
      "vr_halpern(least_squares()._replace(size=0), 1.0)": "size must be a whole number",
      "vr_halpern(least_squares(), 0)": "smoothness must be above 0, got 0",
    },
  ),
]
