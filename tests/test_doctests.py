"""The examples in the docstrings of every public module."""

import doctest
import importlib
import pkgutil

import pytest

import jaxrl
import objectives
import optimizers
from tests import tiers


def _modules():
  for package in (jaxrl, objectives, optimizers):
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
      if not module.name.rpartition(".")[2].startswith("_"):
        marks = tiers.unless_changed(module.name.replace(".", "/") + ".py")
        yield pytest.param(module.name, marks=marks)


@pytest.mark.parametrize("name", list(_modules()))
def test_examples(name):
  results = doctest.testmod(importlib.import_module(name))
  assert results.failed == 0
