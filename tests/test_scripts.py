"""The programs as a user starts them: results, errors in one line, kills and resumption."""

import csv
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxrl.checkpoint import Checkpoints
from scripts import train

ROOT = Path(__file__).parent.parent
ENVIRONMENT = {**os.environ, "XLA_FLAGS": "", "PYTHONWARNINGS": "default"}
QUICK = ["--model", "mlp"]


def start(program, *arguments):
  return subprocess.Popen(
    [sys.executable, "-m", f"scripts.{program}", *map(str, arguments)],
    cwd=ROOT,
    env=ENVIRONMENT,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def finish(process):
  output, errors = process.communicate(timeout=300)
  return process.returncode, output, errors


def run(program, *arguments):
  code, output, errors = finish(start(program, *arguments))
  assert code == 0, errors
  return output


def rows_of(folder):
  return list(csv.DictReader((folder / "metrics.csv").read_text().splitlines()))


def test_train_writes_everything_that_it_promises(tmp_path):
  output = run("train", "--model", "mlp", "--epochs", 2, "--out", tmp_path, "--name", "first")
  folder = tmp_path / "first"
  config = json.loads((folder / "config.json").read_text())
  assert config["optimizer"] == "sam(rho=0.05) | adamw(1e-3)"
  rows = rows_of(folder)
  assert [int(row["step"]) for row in rows] == list(range(1, 37))
  assert [i + 1 for i, row in enumerate(rows) if row["validation/accuracy"]] == [18, 36]
  assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")
  assert list(folder.glob("events.out.tfevents.*"))
  result = json.loads((folder / "result.json").read_text())
  assert set(result["final"]) == {
    f"{split}/{name}" for split in ("train", "validation", "test") for name in ("accuracy", "nll")
  }
  assert result["optimizer_bytes_per_parameter"] == pytest.approx(8, abs=0.01)
  assert result["best"]["epoch"] in (1, 2)
  assert result["examples_per_second"] == pytest.approx(36 * 64 / result["seconds"])
  assert f"{result['final']['test/accuracy']:.4g}" in output


WRONG = {
  "a replacing element behind another": (
    ["--optimizer", "clip_by_global_norm(1.0) | sam()"],
    "sam throws away what stands before it",
  ),
  "a wrong name": (["--optimizer", "adamm(1e-3)"], "did you mean adam"),
  "a wrong argument": (["--optimizer", "adam(lr=1e-3)"], "adam(learning_rate"),
  "a wrong value": (["--optimizer", "sam(rho=-1) | adam(1e-3)"], "rho must be at least 0, got -1"),
  "no loss": (["--objective", "group_dro()"], "an objective needs one loss"),
  "code": (["--optimizer", "__import__('os').system('x')"], "__import__"),
  "brackets": (["--objective", "cross_entropy("], "never closed"),
  "no such data": (["--dataset", "digit"], "did you mean 'digits'"),
  "labels that the data lacks": (["--dataset", "diabetes"], "cross_entropy needs ['labels']"),
  "images that the data lacks": (["--dataset", "diabetes", "--model", "cnn"], "[B, H, W, C]"),
  "a batch too large": (["--batch-size", "5000"], "batch_size must be at most 1200"),
}


@pytest.mark.parametrize("case", WRONG)
def test_errors_are_one_line_and_exit_code_2(case, monkeypatch, capsys, tmp_path):
  arguments, message = WRONG[case]
  monkeypatch.setattr(sys, "argv", ["train", *QUICK, "--out", str(tmp_path), *arguments])
  with pytest.raises(SystemExit) as exit_info:
    train.main()
  assert exit_info.value.code == 2
  errors = capsys.readouterr().err
  assert errors.count("\n") == 1
  assert message in errors
  assert not list(tmp_path.iterdir())


def test_a_checkpoint_of_another_configuration_is_refused(monkeypatch, capsys, tmp_path):
  arguments = ["train", *QUICK, "--epochs", "1", "--out", str(tmp_path), "--name", "mine"]
  monkeypatch.setattr(sys, "argv", arguments)
  train.main()
  written = (tmp_path / "mine" / "result.json").read_text()
  capsys.readouterr()
  train.main()
  assert "mine is complete: nothing is left to train" in capsys.readouterr().err
  monkeypatch.setattr(sys, "argv", [*arguments, "--seed", "7"])
  capsys.readouterr()
  with pytest.raises(SystemExit) as exit_info:
    train.main()
  assert exit_info.value.code == 2
  assert re.search(r"seed.*0.*7", capsys.readouterr().err)
  assert (tmp_path / "mine" / "result.json").read_text() == written
  monkeypatch.setattr(sys, "argv", [*arguments, "--seed", "7", "--no-resume"])
  train.main()
  assert (tmp_path / "mine-2" / "result.json").exists()


def test_a_parameter_that_is_not_finite_ends_the_run(monkeypatch, capsys, tmp_path):
  arguments = ["train", *QUICK, "--out", str(tmp_path), "--optimizer", "sgd(1e38)"]
  monkeypatch.setattr(sys, "argv", arguments)
  with pytest.raises(SystemExit) as exit_info:
    train.main()
  assert exit_info.value.code == 1
  assert re.search(r"parameter Dense_\d/\w+ is not finite after step \d", capsys.readouterr().err)


def test_patience_stops_early(monkeypatch, tmp_path):
  arguments = [*QUICK, "--epochs", "6", "--patience", "2", "--optimizer", "sgd(0.0)"]
  monkeypatch.setattr(sys, "argv", ["train", *arguments, "--out", str(tmp_path), "--name", "still"])
  train.main()
  result = json.loads((tmp_path / "still" / "result.json").read_text())
  assert (result["steps"], result["best"]["epoch"]) == (3 * 18, 1)


EPOCHS = 24
LONG = [*QUICK, "--epochs", EPOCHS, "--checkpoint-every", 7, "--objective", "elr() | group_dro()"]


def final_state(folder):
  config = json.loads((folder / "config.json").read_text())
  prepared = train.prepare(
    train.Config(**{k: config[k] for k in ("model", "objective", "optimizer", "epochs")})
  )
  abstract = prepared.program.abstract_state
  ignore = tuple(config)
  with Checkpoints(folder / "checkpoints", config, ignore=ignore) as checkpoints:
    return checkpoints.restore_latest(abstract)


def started_training(process, folder, before):
  """Waits until the process has begun its steps, which it does after writing config.json."""
  marker = folder / "config.json"
  while process.poll() is None:
    if marker.exists() and marker.stat().st_mtime_ns != before:
      return
    time.sleep(0.01)


def stopped_again_and_again(folder, signals, longest, seed):
  """Sends each signal at a random moment of a training process, resuming after each."""
  arguments = [*LONG, "--out", folder.parent, "--name", folder.name]
  moments, stopped = random.Random(seed), []
  for number in signals:
    marker = folder / "config.json"
    before = marker.stat().st_mtime_ns if marker.exists() else None
    process = start("train", *arguments)
    started_training(process, folder, before)
    time.sleep(moments.uniform(0, longest))
    process.send_signal(number)
    stopped.append(finish(process))
  run("train", *arguments)
  return stopped


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
  folder = tmp_path_factory.mktemp("undisturbed") / "run"
  run("train", *LONG, "--out", folder.parent, "--name", folder.name)
  return folder


def assert_same_end(folder, undisturbed):
  ours, theirs = final_state(folder), final_state(undisturbed)
  assert ours.step == theirs.step == EPOCHS * 18
  jax.tree.map(np.testing.assert_array_equal, ours.state, theirs.state)
  results = [json.loads((f / "result.json").read_text()) for f in (folder, undisturbed)]
  assert results[0]["final"] == results[1]["final"]
  assert rows_of(folder) == rows_of(undisturbed)


def training_seconds(folder):
  return json.loads((folder / "result.json").read_text())["seconds"]


@pytest.mark.full
def test_killed_three_times_a_run_ends_the_same_bit_for_bit(undisturbed, tmp_path):
  folder = tmp_path / "killed"
  longest = training_seconds(undisturbed) / 3
  stopped = stopped_again_and_again(folder, [signal.SIGKILL] * 3, longest, seed=0)
  assert [code for code, *_ in stopped].count(-signal.SIGKILL) == 3
  assert_same_end(folder, undisturbed)


@pytest.mark.full
def test_sigterm_saves_before_it_ends(undisturbed, tmp_path):
  folder = tmp_path / "terminated"
  longest = training_seconds(undisturbed) / 2
  ((code, _, errors),) = stopped_again_and_again(folder, [signal.SIGTERM], longest, seed=1)
  assert code == 143
  assert re.search(r"SIGTERM: step \d+ is saved", errors)
  assert_same_end(folder, undisturbed)


@pytest.mark.soak
def test_killed_twenty_times_a_run_ends_the_same_bit_for_bit(undisturbed, tmp_path):
  folder = tmp_path / "killed"
  longest = training_seconds(undisturbed) / 10
  stopped = stopped_again_and_again(folder, [signal.SIGKILL] * 20, longest, seed=2)
  assert [code for code, *_ in stopped].count(-signal.SIGKILL) == 20
  assert_same_end(folder, undisturbed)


@pytest.mark.full
def test_bench_prints_ratios(tmp_path):
  output = run("bench", "--suite", "train", "--rounds", 1, "--out", tmp_path)
  rows = [
    line for line in output.splitlines() if re.match(r"\| .* \| jaxrl \| optax by hand \|", line)
  ]
  assert len(rows) == 4 and all(re.search(r"\| \d+\.\d+ \|", row) for row in rows)


@pytest.mark.soak
def test_the_defaults_reach_98_percent_over_five_seeds(tmp_path):
  accuracies = []
  for seed in range(5):
    run("train", "--seed", seed, "--out", tmp_path, "--name", seed)
    result = json.loads((tmp_path / str(seed) / "result.json").read_text())
    assert result["seconds"] < 120
    accuracies.append(result["final"]["test/accuracy"])
  assert np.mean(accuracies) >= 0.98
