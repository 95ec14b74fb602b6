"""Every row of `cases/solvers.py` on every property of solvers."""

import functools

import pytest

from tests.properties import cases_of
from tests.solver_properties import Bench, checks

_bench = functools.lru_cache(maxsize=2)(Bench)


@pytest.mark.parametrize(("row", "check"), cases_of(["solvers"], checks))
def test_solver(row, check):
  check.run(_bench(row))
