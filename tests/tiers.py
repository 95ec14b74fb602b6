"""Which checks run: TIER=core (the default), all or soak.

core: every row on the checks that share one compiled step, and all checks and values of the
methods whose files changed. all: everything but soak. soak: what is marked `soak`, and only that.
Checks and tests that core leaves out are marked `full`.
"""

import functools
import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TIERS = ("core", "all", "soak")


def current() -> str:
  """The tier of this run."""
  tier = os.environ.get("TIER", "core")
  if tier not in TIERS:
    raise pytest.UsageError(f"TIER must be one of {TIERS}, got {tier!r}")
  return tier


def runs(item: pytest.Item) -> bool:
  """Whether this tier runs a test."""
  soak = item.get_closest_marker("soak") is not None
  if soak or current() == "soak":
    return soak and current() == "soak"
  return current() == "all" or not (item.get_closest_marker("full") or _is_old_value(item))


def _is_old_value(item: pytest.Item) -> bool:
  """Whether a test is of a method's values, and neither its own file nor the method's changed."""
  if not item.path.name.startswith("test_values_"):
    return False
  from tests import cases  # here: a project without methods has none

  method = cases.named_at_start(item.originalname.removeprefix("test_"))
  own = item.path.relative_to(ROOT).as_posix()
  return bool(unless_changed(own, method.file if method else own))


def unless_changed(*paths: str) -> list[pytest.MarkDecorator]:
  """The marks of a test that core runs only while a file differs that is, or begins by, a path."""
  changed = any(file.startswith(paths) for file in changed_files())
  return [] if changed else [pytest.mark.full]


@functools.cache
def changed_files() -> frozenset[str]:
  """Files that differ from where this work began, as paths from the root; none without git.

  It began at the merge base with origin/main, or one commit ago when that is the last commit.
  """
  head, upstream = _git("rev-parse", "HEAD"), _git("merge-base", "HEAD", "origin/main")
  base = upstream if upstream and upstream != head else _git("rev-parse", "HEAD~1")
  changed = _git("diff", "--name-only", *(base or head))
  return frozenset(changed + _git("ls-files", "--others", "--exclude-standard"))


def _git(*arguments: str) -> list[str]:
  """The lines that git answers; none where there is no git, no repository or no such commit."""
  try:
    answer = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
  except FileNotFoundError:
    return []
  return answer.stdout.splitlines() if answer.returncode == 0 else []
