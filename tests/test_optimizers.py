"""Every row of `cases/optimizers.py` on every property of optimizers."""

import functools

import pytest

from tests.optimizer_properties import Bench, checks
from tests.properties import cases_of

_bench = functools.lru_cache(maxsize=2)(Bench)


@pytest.mark.parametrize(("row", "check"), cases_of(["optimizers"], checks))
def test_optimizer(row, check):
  check.run(_bench(row))
