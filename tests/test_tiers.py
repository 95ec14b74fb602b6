"""What a tier runs, what a changed file brings in, and the budget: on a project of two tests."""

import shutil
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest

from tests import tiers

pytestmark = pytest.mark.full

SUITE = """
import time, pytest
from tests import tiers
def test_core(): time.sleep(0.3)
@pytest.mark.full
def test_full(): pass
@pytest.mark.soak
def test_soak(): pass
@pytest.mark.parametrize("file", [pytest.param("a.py", marks=tiers.unless_changed("a.py"))])
def test_of_a_file(file): pass
"""
SETTINGS = """
[tool.pytest.ini_options]
markers = ["full", "soak"]
pythonpath = ["."]
"""


@pytest.fixture
def project(tmp_path):
  """A project with this suite's conftest and tiers."""
  (tmp_path / "tests").mkdir()
  here = Path(__file__).parent
  for name in ("__init__.py", "conftest.py", "tiers.py"):
    shutil.copy(here / name, tmp_path / "tests" / name)
  (tmp_path / "tests" / "test_some.py").write_text(SUITE)
  (tmp_path / "pyproject.toml").write_text(SETTINGS)
  (tmp_path / "a.py").write_text("")
  return tmp_path


def run(project, monkeypatch, tier, budget=""):
  """The names of the tests that ran, the output and the exit code."""
  monkeypatch.setenv("TIER", tier)
  monkeypatch.setenv("TEST_BUDGET_SECONDS", budget)
  command = [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", "tests"]
  done = subprocess.run(command, cwd=project, capture_output=True, text=True)
  ran = {
    line.split("::")[1].split("[")[0].split()[0]
    for line in done.stdout.splitlines()
    if "PASSED" in line
  }
  return ran, done.stdout + done.stderr, done.returncode


def git(project, *arguments):
  identity = ["-c", "user.name=n", "-c", "user.email=e", "-c", "commit.gpgsign=false"]
  subprocess.run(["git", *identity, *arguments], cwd=project, check=True, capture_output=True)


def committed(project, message="m"):
  git(project, "add", ".")
  git(project, "commit", "-q", "-m", message)


def test_each_tier_runs_its_tests_even_without_git(project, monkeypatch):
  assert run(project, monkeypatch, "core")[0] == {"test_core"}
  assert run(project, monkeypatch, "all")[0] == {"test_core", "test_full", "test_of_a_file"}
  assert run(project, monkeypatch, "soak")[0] == {"test_soak"}


def test_an_unknown_tier_is_refused(project, monkeypatch):
  _, output, code = run(project, monkeypatch, "some")
  assert code != 0
  assert "TIER must be one of" in output


def test_core_runs_the_values_of_changed_methods_alone(monkeypatch):
  def runs(path, name, *changed):
    monkeypatch.setattr(tiers, "changed_files", lambda: frozenset(changed))
    item = mock.Mock(path=tiers.ROOT / "tests" / path, originalname=name)
    item.get_closest_marker.return_value = None
    return tiers.runs(item)

  monkeypatch.setenv("TIER", "core")
  assert runs("test_values_sam.py", "test_sam_by_hand", "optimizers/sam.py")
  assert runs("test_values_sam.py", "test_sam_by_hand", "tests/test_values_sam.py")
  assert not runs("test_values_sam.py", "test_sam_by_hand", "optimizers/gam.py")
  assert not runs("test_values_sam.py", "test_of_nothing", "optimizers/gam.py")
  assert runs("test_sam.py", "test_sam_by_hand")
  monkeypatch.setenv("TIER", "all")
  assert runs("test_values_sam.py", "test_sam_by_hand")


def test_a_changed_file_brings_in_all_its_checks(project, monkeypatch):
  git(project, "init", "-q")
  committed(project)
  (project / "other.py").write_text("")
  committed(project)
  assert run(project, monkeypatch, "core")[0] == {"test_core"}
  (project / "a.py").write_text("changed = 1")
  assert run(project, monkeypatch, "core")[0] == {"test_core", "test_of_a_file"}
  committed(project)
  assert run(project, monkeypatch, "core")[0] == {"test_core", "test_of_a_file"}
  (project / "other.py").write_text("changed = 1")
  committed(project)
  assert run(project, monkeypatch, "core")[0] == {"test_core"}
  git(project, "update-ref", "refs/remotes/origin/main", "HEAD~2")
  assert run(project, monkeypatch, "core")[0] == {"test_core", "test_of_a_file"}


def test_the_suite_fails_over_budget_and_prints_the_slowest(project, monkeypatch):
  _, output, code = run(project, monkeypatch, "core", budget="600")
  assert code == 0
  assert "s  tests/test_some.py::test_core" in output
  _, output, code = run(project, monkeypatch, "core", budget="0.1")
  assert code == 1
  assert "over budget" in output


def test_without_a_tier_it_is_core(monkeypatch):
  monkeypatch.delenv("TIER", raising=False)
  assert tiers.current() == "core"
