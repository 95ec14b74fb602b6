"""Benchmarks: what they measure, that a slow step is caught, peers in their own processes."""

import json
import platform
import sys
import textwrap
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrl import models
from scripts import bench
from scripts.bench import __main__ as command
from scripts.bench import compressed, memory, sharpness, train
from scripts.bench._measure import Case, Comparison, Program, Ratio, Table, measure, of_step
from scripts.bench._peers import Peers
from scripts.bench._report import Report, machine

WIDTH = 64
SLOW = """
import time

import jax.numpy as jnp

from scripts.bench._measure import Case, Comparison, of_step

STEPS = 5


def times(work):
  def step(weights, batch):
    for _ in range(4 * work):
      weights = jnp.tanh(weights @ batch)
    return weights, ()

  weights, batch = jnp.eye(128), jnp.eye(128)
  return of_step(step, weights, batch, optimizer_state=lambda _: (), steps=STEPS)


def slowed(program):
  def run():  # Sleeps, since work alone is hard to tell from noise on a busy machine.
    start = time.perf_counter()
    time.sleep(0.1)
    program.run()
    return (time.perf_counter() - start) / STEPS

  return program._replace(run=run)


def suite(peers):
  programs = {
    "plain": times(1),
    "slowed": slowed(times(5)),
    "again": times(1),
    "torch": peers.program("x"),
  }
  comparisons = [
    Comparison("slowed", "plain"),
    Comparison("again", "plain"),
    Comparison("slowed", "again", 1e6),
    Comparison("plain", "torch"),
  ]
  yield Case("products", programs, comparisons)
"""


def scripted(*seconds, calls=None, name=""):
  """A program that takes these seconds, round by round."""
  left = iter(seconds)

  def run():
    if calls is not None:
      calls.append(name)
    return next(left)

  return Program(run)


def test_ratios_are_taken_within_rounds_and_the_first_is_not_counted():
  drift = np.array([100.0, 1.0, 2.0, 4.0, 8.0])
  programs = {"ours": scripted(*(1.5 * drift)), "peer": scripted(*drift)}
  timings, (ratio,) = measure(Case("c", programs, [Comparison("ours", "peer")]), rounds=4)
  assert ratio.ratio == (1.5, 1.5, 1.5)
  assert [timing.seconds.median for timing in timings] == [4.5, 3.0]
  assert timings[1].seconds == (1.75, 3.0, 5.0)


def test_quartiles_are_those_of_the_rounds():
  programs = {"ours": scripted(9, 1, 2, 3, 4, 5), "peer": scripted(*[1] * 6)}
  _, (ratio,) = measure(Case("c", programs, [Comparison("ours", "peer")]), rounds=5)
  assert ratio.ratio == (2.0, 3.0, 4.0)


def test_another_program_begins_in_every_round():
  calls = []
  programs = {name: scripted(*[1] * 4, calls=calls, name=name) for name in "abc"}
  measure(Case("c", programs, []), rounds=3)
  assert "".join(calls) == "abc" + "bca" + "cab" + "abc"


def test_programs_that_are_missing_leave_their_rows_empty():
  programs = {"ours": Program(None, "missing: a"), "peer": Program(None, "missing: b")}
  measured = measure(Case("c", programs, [Comparison("ours", "peer", 1.0)]), rounds=2)
  table = Report("s", 2, machine(), *measured, []).markdown()
  assert "| c | ours (missing: a) | peer (missing: b) | - | - | 1 | - |" in table
  assert "| c | peer (missing: b) |" + " - |" * 9 in table


def test_a_step_is_traced_once_and_its_costs_are_counted():
  traces = []

  def step(state, batch):
    traces.append(1)
    return {"w": state["w"] @ batch, "m": state["m"] + 1}, jnp.sum(batch)

  state = {"w": jnp.eye(WIDTH), "m": jnp.zeros(WIDTH)}
  program = of_step(step, state, np.eye(WIDTH), optimizer_state=lambda s: s["m"], steps=3)
  assert program.run() > 0
  assert program.run() > 0
  assert len(traces) == 1
  assert program.compile_seconds > 0
  assert program.optimizer_state == 4 * WIDTH
  assert program.arguments == 4 * (2 * WIDTH**2 + WIDTH)
  assert program.outputs >= 4 * (WIDTH**2 + WIDTH + 1)
  assert program.temporaries >= 0
  assert 4 * 2 * WIDTH**2 <= program.peak <= program.temporaries + 4 * (2 * WIDTH**2 + 2 * WIDTH)
  assert program.flops == pytest.approx(2 * WIDTH**3, rel=0.1)


@pytest.mark.parametrize(
  "step",
  [
    lambda state, batch: (state.astype(jnp.bfloat16), batch),
    lambda state, batch: ((state, state), batch),
    lambda state, batch: (2.0, batch),
  ],
)
def test_a_step_that_would_be_traced_again_is_refused(step):
  with pytest.raises(TypeError, match="must leave its state's types alone"):
    of_step(step, jnp.zeros([]), jnp.zeros([]), optimizer_state=lambda _: (), steps=1)


@pytest.fixture
def slow_suite(tmp_path, monkeypatch):
  """A suite with a step that sleeps, and does its work five times over."""
  folder = tmp_path / "suites"
  folder.mkdir()
  (folder / "slowed_products.py").write_text(SLOW)
  monkeypatch.setattr(bench, "__path__", [*bench.__path__, str(folder)])
  return ["--suite", "slowed_products", "--rounds", "5", "--out", str(tmp_path / "out")]


def test_a_slowed_step_is_caught(slow_suite, tmp_path, capsys):
  with pytest.raises(SystemExit) as left:
    command.main([*slow_suite, "--fail-above", "1.8"])
  output, errors = capsys.readouterr()
  assert left.value.code == 1
  assert errors.startswith("error: too slow: products: slowed / plain = ")
  assert errors.count("\n") == 1
  assert "again" not in errors  # not slow, or with a limit of its own
  result = json.loads((tmp_path / "out" / "slowed_products.json").read_text())
  slowed, again, *_ = result["ratios"]
  assert slowed["ratio"]["low"] > 1.8
  assert slowed["flops"] == pytest.approx(5, rel=0.1)
  assert again["ratio"]["low"] < 1.8
  assert output.strip()


def test_a_suite_within_its_limits_passes_and_writes_what_it_prints(slow_suite, tmp_path, capsys):
  command.main([*slow_suite, "--fail-above", "1e6"])
  output, errors = capsys.readouterr()
  assert errors == ""
  table, _, written = output.rpartition("\n\n")
  assert f"jax {jax.__version__}, cpu: 8 x cpu" in table.splitlines()[0]
  assert written.split() == [
    "written", "to", str(tmp_path / "out/slowed_products.md"), "and",
    str(tmp_path / "out/slowed_products.json"),
  ]  # fmt: skip
  markdown = (tmp_path / "out" / "slowed_products.md").read_text()
  assert markdown.endswith(f"{table}\n")
  assert platform.node() not in markdown
  missing = "| products | plain | torch (missing: no --peers) | - | - | - | - |"
  assert missing in table.splitlines()
  lengths = {line.count("|") for line in table.splitlines() if line.startswith("|")}
  assert len(lengths) == 2


def test_the_json_has_seconds_and_bytes(slow_suite, tmp_path):
  command.main(slow_suite)
  result = json.loads((tmp_path / "out" / "slowed_products.json").read_text())
  assert result["machine"] | {"load": 0} == machine() | {"load": 0}
  assert result["rounds"] == 5
  plain, *_, torch = result["programs"]
  assert plain["seconds"]["low"] <= plain["seconds"]["median"] <= plain["seconds"]["high"]
  assert plain["arguments"] == 2 * 4 * 128**2
  assert plain["optimizer_state"] == 0
  assert torch == dict.fromkeys(plain) | {
    "case": "products",
    "program": "torch",
    "note": "missing: no --peers",
  }


@pytest.mark.parametrize(
  ("own", "limit", "exceeds"),
  [(None, None, False), (None, 1.5, True), (None, 2.0, False), (2.5, 1.5, False), (1.5, 9.0, True)],
)
def test_the_limit_of_a_comparison_comes_first(own, limit, exceeds):
  comparison = Comparison("ours", "peer", own)
  programs = {"ours": scripted(2, 2), "peer": scripted(1, 1)}
  _, (ratio,) = measure(Case("c", programs, [comparison]), rounds=1)
  assert ratio.exceeds(limit) is exceeds
  assert not Ratio("c", comparison, None, None).exceeds(limit)


def test_a_limit_that_is_exceeded_is_marked():
  programs = {"ours": scripted(2, 2), "peer": scripted(1, 1)}
  measured = measure(Case("c", programs, [Comparison("ours", "peer", 1.5)]), rounds=1)
  table = Report("s", 1, machine(), *measured, []).markdown()
  assert "| c | ours | peer | 2.000 | 2.000 to 2.000 | 1.5 (exceeded) | - |" in table


WRONG = {
  "suite": (["--suite", "trian"], "must be one of ['compressed', 'memory', 'second_order', "),
  "no sizes": (["--sizes", "1e6"], "suite train has no sizes, got (1000000.0,)"),
  "sizes": (["--suite", "compressed", "--sizes", "0.5"], "whole numbers of at least 1, got 0.5"),
  "rounds": (["--rounds", "0"], "rounds must be a whole number of at least 1, got 0"),
  "peers": (["--peers", "no/python"], "peers must be the path of a Python, got 'no/python'"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments_are_told_in_one_line(name, capsys):
  arguments, message = WRONG[name]
  with pytest.raises(SystemExit) as left:
    command.main(arguments)
  output, errors = capsys.readouterr()
  assert (left.value.code, output, errors.count("\n")) == (2, "", 1)
  assert message in errors


def peers_in(folder, **files):
  """Peers by our own Python, from files with this text."""
  for name, text in files.items():
    (folder / f"{name}.py").write_text(textwrap.dedent(text))
  return Peers(Path(sys.executable), folder)


SERVE = """
  from scripts.bench.peers import _worker
  steps = []
  def step():
    print("must not be taken for an answer")
    steps.append(1)
  def finish():
    assert len(steps) % 3 == 0
  _worker.serve("nothing but Python", step, finish, steps=3)
"""


def test_a_worker_takes_its_turns(tmp_path):
  with peers_in(tmp_path, fast=SERVE) as peers:
    programs = {"fast": peers.program("fast"), "ours": scripted(*[1.0] * 4)}
    assert programs["fast"].note == "nothing but Python"
    timings, (ratio,) = measure(Case("c", programs, [Comparison("ours", "fast")]), rounds=3)
  assert timings[0].seconds.low > 0
  assert ratio.ratio.low > 1


def test_a_worker_is_told_its_arguments_and_ends_with_its_input(tmp_path):
  text = """
    import pathlib, sys
    print("ready", *sys.argv[2:], flush=True)
    sys.stdin.read()
    pathlib.Path(sys.argv[1]).touch()
  """
  with peers_in(tmp_path, told=text) as peers:
    assert peers.program("told", str(tmp_path / "end"), "a", "b").note == "a b"
    assert not (tmp_path / "end").exists()
  assert (tmp_path / "end").exists()


def test_a_peer_that_cannot_start_is_missing_and_says_why(tmp_path):
  with peers_in(tmp_path, broken="import no_such_library") as peers:
    for name, why in {
      "broken": "No module named 'no_such_library'",
      "none": "No such file",
    }.items():
      program = peers.program(name)
      assert program.run is None
      assert program.note.startswith("missing: ")
      assert why in program.note


def test_a_peer_that_ends_too_soon_is_an_error(tmp_path):
  with peers_in(tmp_path, brief="print('ready', flush=True)\n1 / 0") as peers:
    program = peers.program("brief")
    with pytest.raises(EOFError, match="ZeroDivisionError"):
      program.run()


def test_a_peer_that_does_not_follow_the_protocol_is_refused(tmp_path):
  with (
    peers_in(tmp_path, rude="print('hello')") as peers,
    pytest.raises(ValueError, match="peer rude must say 'ready' first, got 'hello'"),
  ):
    peers.program("rude")


@pytest.mark.full
@pytest.mark.parametrize("rho", [None, train.RHO])
def test_the_library_does_the_work_of_the_loop_by_hand(rho):
  ours, by_hand = train.library("mlp", rho), train.by_hand("mlp", rho)
  assert ours.flops <= 1.05 * by_hand.flops
  assert ours.optimizer_state == by_hand.optimizer_state + (0 if rho is None else 4)
  assert ours.temporaries <= 1.1 * by_hand.temporaries


@pytest.mark.full
def test_sharpness_methods_do_the_work_of_their_gradients():
  optimizers = sharpness.optimizers(optax.sgd(0.1))
  flops = {name: train.library_step("mlp", step).flops for name, step in optimizers.items()}
  assert flops["sam"] <= 2.1 * flops["plain"]
  assert flops["sam"] <= 1.01 * flops["optax.contrib.sam"]
  assert flops["gam"] <= 4.3 * flops["plain"]


def test_tables_of_a_suite_stand_below_its_programs():
  table = Table("bytes", ("leaf", "size"), [["kernel", 3], ["bias", None]])
  report = Report("s", 2, machine(), [], [], [table])
  end = "bytes\n\n| leaf | size |\n| --- | --- |\n| kernel | 3 |\n| bias | - |"
  assert report.markdown().endswith(end)
  assert json.loads(json.dumps(report.as_json()))["tables"][0]["rows"] == [*map(list, table.rows)]


@pytest.mark.parametrize("model", memory.MODELS)
def test_micro_adam_keeps_less_than_a_byte_a_parameter_of_leaves_of_a_block(model):
  table = memory.table(model)
  big, small, whole = (dict(zip(table.header, row, strict=True)) for row in table.rows[-3:])
  assert big[memory.DEFAULT] <= 0.97 and big[memory.LARGE] <= 0.91
  assert big["adamw"] == small["adamw"] == 8
  assert big["parameters"] + small["parameters"] == whole["parameters"]
  assert big["parameters"] > 0.95 * whole["parameters"]


@pytest.mark.parametrize("name", memory.OPTIMIZERS)
def test_what_leaves_keep_is_all_of_the_state_but_counters(name):
  optimizer = memory.OPTIMIZERS[name]
  params = {"kernel": jnp.zeros((64, 96)), "bias": jnp.zeros(96)}
  state = optimizer.init(params)
  whole = sum(x.nbytes for x in jax.tree.leaves(state))
  kept = memory.bytes_of_leaves(optimizer, params)
  assert 0 <= whole - sum(kept.values()) <= 16


def test_all_selections_find_the_same_entries():
  entries = jnp.abs(jax.random.normal(jax.random.key(0), (1, 2, compressed.BLOCK)))
  found = [jax.jit(select)(entries) for select in compressed.SELECTIONS.values()]
  for other in found[1:]:
    np.testing.assert_array_equal(other, found[0])


def test_a_transformer_has_about_as_many_parameters_as_are_asked_for():
  module, batch = compressed.transformer(10**6)
  params = jax.eval_shape(models.from_flax(module).init, jax.random.key(0), batch["inputs"][:1])[0]
  assert 0.8e6 < sum(x.size for x in jax.tree.leaves(params)) < 2.5e6


def test_every_suite_has_its_results():
  folder = Path(__file__).parent.parent / "docs" / "bench"
  assert {"sharpness", "train"} <= set(command.suites())
  for suite in command.suites():
    result = json.loads((folder / f"{suite}.json").read_text())
    assert result["suite"] == suite
    assert f"# {suite}" in (folder / f"{suite}.md").read_text()
