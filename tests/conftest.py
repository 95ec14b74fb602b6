"""Settings of the suite: devices, strictness, tiers, the time budget and the slowest rows."""

import importlib.metadata
import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
_FLAGS = [
  "--xla_force_host_platform_device_count=8",
  # Programs compile in half the time, to slower code: most of them run once.
  "--xla_backend_optimization_level=0",
  "--xla_llvm_disable_expensive_passes=true",
  "--xla_cpu_parallel_codegen_split_count=1",
]
if importlib.metadata.version("jaxlib").startswith("0.10."):  # later versions don't know it
  _FLAGS.append("--xla_cpu_use_fusion_emitters=false")
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *_FLAGS]).strip()

import collections  # noqa: E402  (JAX reads the environment when it is imported)
import time  # noqa: E402

import hypothesis  # noqa: E402
import jax  # noqa: E402
import pytest  # noqa: E402

pytest.register_assert_rewrite(
  "tests.properties", "tests.optimizer_properties", "tests.objective_properties"
)
from tests import tiers  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")

hypothesis.settings.register_profile(
  "repeatable", derandomize=True, deadline=None, database=None, print_blob=False
)
hypothesis.settings.load_profile("repeatable")

_started = time.monotonic()
_seconds: collections.Counter[str] = collections.Counter()


def pytest_collection_modifyitems(config, items):
  """Leaves out what the tier doesn't run, and notes the row of each check."""
  kept = [item for item in items if tiers.runs(item)]
  config.hook.pytest_deselected(items=[item for item in items if item not in set(kept)])
  items[:] = kept
  for item in items:
    row = getattr(item, "callspec", None) and item.callspec.params.get("row")
    if row:
      item.user_properties.append(("row", row.spec))


@pytest.fixture(scope="module", autouse=True)
def _no_programs_of_other_files():
  """Drops what a file compiled: kept to the end of the suite it would fill the memory."""
  yield
  jax.clear_caches()


def pytest_runtest_logreport(report):
  """Adds up the time of each row, and of each test without one."""
  name = dict(report.user_properties).get("row", report.nodeid)
  _seconds[name] += report.duration


def pytest_terminal_summary(terminalreporter):
  """Prints the ten slowest rows."""
  terminalreporter.section(f"ten slowest rows (tier {tiers.current()})")
  for name, seconds in _seconds.most_common(10):
    terminalreporter.write_line(f"{seconds:8.2f} s  {name}")


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session):
  """Fails a suite that took longer than TEST_BUDGET_SECONDS."""
  budget = os.environ.get("TEST_BUDGET_SECONDS")
  took = time.monotonic() - _started
  if budget and not hasattr(session.config, "workerinput") and took > float(budget):
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    reporter.write_line(f"\nover budget: {took:.0f} s of TEST_BUDGET_SECONDS={budget}", red=True)
    session.exitstatus = pytest.ExitCode.TESTS_FAILED
