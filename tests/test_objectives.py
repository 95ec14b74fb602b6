"""Every row of the folders of `objectives/` on every property of objectives."""

import functools

import pytest

from tests.objective_properties import Bench, checks
from tests.properties import cases_of, objective_files

_bench = functools.lru_cache(maxsize=2)(Bench)


@pytest.mark.parametrize(("row", "check"), cases_of(objective_files(), checks))
def test_objective(row, check):
  check.run(_bench(row))
