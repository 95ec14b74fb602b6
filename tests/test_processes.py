"""Two processes of four devices each: equal to one of eight, and what happens when one goes."""

import csv
import itertools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxrl import _witness, data, processes
from jaxrl.checkpoint import Checkpoints
from scripts import train

ROOT = Path(__file__).parent.parent
RUN = ["--model", "mlp", "--mesh", "data=8"]
SILENCE = 5
PROGRAM = f"""
from jaxrl import processes
processes.HEARTBEAT_SECONDS = {SILENCE}
from scripts import train
train.main()
"""


def free_port():
  with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    return probe.getsockname()[1]


def by_options(port):
  """How to start process i by the options of the command line."""
  return lambda i: (
    ["--coordinator", f"127.0.0.1:{port}", "--num-processes", "2", "--process-id", str(i)],
    {},
  )


def by_slurm():
  """How Slurm would start process i; JAX takes the port from the job's number."""
  job = next(n for n in itertools.count(os.getpid()) if is_free(n % 2**12 + 61440))
  same = {"SLURM_JOB_ID": job, "SLURM_NTASKS": 2, "SLURM_STEP_NUM_TASKS": 2}
  return lambda i: (
    [],
    {**same, "SLURM_STEP_NODELIST": "127.0.0.1", "SLURM_PROCID": i, "SLURM_LOCALID": i},
  )


def is_free(port):
  with socket.socket() as probe:
    return probe.connect_ex(("127.0.0.1", port)) != 0


def start(folder, arguments, how=None):
  how = how or by_options(free_port())
  arguments = [*RUN, "--out", folder.parent, "--name", folder.name, *arguments]
  devices = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
  started = []
  for i in range(2):
    own, environment = how(i)
    environment = {**devices, **{name: str(value) for name, value in environment.items()}}
    started.append(
      subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *map(str, arguments), *own],
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
      )
    )
  return started


def finish(started):
  """Exit codes, outputs and errors."""
  outputs = [process.communicate(timeout=120) for process in started]
  codes = [process.returncode for process in started]
  return codes, [out for out, _ in outputs], [errors for _, errors in outputs]


def run(folder, arguments, how=None):
  codes, outputs, errors = finish(start(folder, arguments, how))
  assert codes == [0, 0], errors
  return outputs, errors


def alone(folder, arguments, monkeypatch):
  """One process with all eight devices: this one."""
  arguments = [*RUN, "--out", folder.parent, "--name", folder.name, *arguments]
  monkeypatch.setattr(sys, "argv", ["train", *map(str, arguments)])
  train.main()


def final_state(folder, arguments):
  """What the last checkpoint holds, on this process's eight devices."""
  config = json.loads((folder / "config.json").read_text())
  options = dict(zip(arguments[::2], arguments[1::2], strict=True))
  prepared = train.prepare(
    train.Config(
      model="mlp", mesh="data=8", optimizer=options.get("--optimizer", config["optimizer"])
    )
  )
  ignore = tuple(config)
  with Checkpoints(folder / "checkpoints", config, ignore=ignore) as checkpoints:
    return checkpoints.restore_latest(prepared.program.abstract_state)


def assert_same_end(folder, other, arguments, atol):
  ours, theirs = final_state(folder, arguments), final_state(other, arguments)
  assert ours.step == theirs.step
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=atol), ours.state, theirs.state
  )
  texts = [(f / "metrics.csv").read_text() for f in (folder, other)]
  rows = [list(csv.DictReader(text.splitlines())) for text in texts]
  assert len(rows[0]) == ours.step
  for row, expected in zip(*rows, strict=True):
    assert row.keys() == expected.keys()
    for name, value in row.items():
      assert bool(value) == bool(expected[name])
      assert float(value or 0) == pytest.approx(float(expected[name] or 0), rel=1e-6, abs=atol)


LOCAL = ["--optimizer", "ef21(top_k(0.1), axis_name='data') | sgd(0.1)"]


@pytest.mark.parametrize("method", [[], pytest.param(LOCAL, marks=pytest.mark.full)])
def test_two_processes_equal_one(method, tmp_path, monkeypatch, capsys):
  # Few steps: Adam makes much of the last bits of gradients near 0.
  arguments = ["--epochs", 1, "--batch-size", 240, *method]
  outputs, errors = run(tmp_path / "two", arguments)
  alone(tmp_path / "one", arguments, monkeypatch)
  assert_same_end(tmp_path / "two", tmp_path / "one", arguments, atol=1e-6)
  results = [json.loads((tmp_path / n / "result.json").read_text()) for n in ("two", "one")]
  assert results[0]["final"] == pytest.approx(results[1]["final"], abs=1e-6)
  assert results[0]["parameters"] == results[1]["parameters"]
  first_lines = capsys.readouterr().out.splitlines()[:4]
  assert outputs[0].splitlines()[:4] == first_lines
  assert (outputs[1], *errors) == ("", "", "")
  assert len(list((tmp_path / "two").glob("events*"))) == 1


def wait_for_a_checkpoint(folder, started, after=0):
  def saved():
    return [int(p.name) for p in (folder / "checkpoints").glob("*") if p.name.isdecimal()]

  while max(saved(), default=0) <= after:
    assert [process.poll() for process in started] == [None, None], finish(started)
    time.sleep(0.05)
  return max(saved())


@pytest.mark.full
def test_when_one_is_killed_the_others_say_so_and_the_run_goes_on(tmp_path):
  arguments = ["--epochs", 5, "--checkpoint-every", 9]
  step = 0
  for victim in (1, 0):
    started = start(tmp_path / "killed", arguments)
    step = wait_for_a_checkpoint(tmp_path / "killed", started, step)
    started[victim].kill()
    killed = time.monotonic()
    codes, outputs, errors = finish(started)
    assert time.monotonic() - killed < processes.LOSS_SECONDS
    assert codes[victim] == -signal.SIGKILL
    assert codes[1 - victim] != 0
    resume = "the same command, in all processes, goes on from the last checkpoint"
    assert errors[victim] == f"error: process {victim} was killed; {resume}\n"
    assert errors[1 - victim] in (
      f"error: process {victim} is gone; {resume}\n",
      f"error: the connection to another process broke; {resume}\n",
    )
    assert outputs == ["", ""]
  run(tmp_path / "killed", arguments)
  run(tmp_path / "undisturbed", arguments)
  assert_same_end(tmp_path / "killed", tmp_path / "undisturbed", arguments, atol=1e-6)


@pytest.mark.full
def test_a_signal_to_one_stops_all_at_one_step(tmp_path):
  arguments = ["--epochs", 200, "--checkpoint-every", 7]
  started = start(tmp_path / "stopped", arguments, by_slurm())
  wait_for_a_checkpoint(tmp_path / "stopped", started)
  started[1].terminate()
  codes, _, errors = finish(started)
  assert codes == [143, 143], errors
  steps = [re.search(r"step (\d+) is saved", text)[1] for text in errors]
  assert steps[0] == steps[1]
  assert errors[1].startswith("error: SIGTERM: ")
  assert [text.count("\n") for text in errors] == [1, 1]
  assert (tmp_path / "stopped" / "checkpoints" / steps[0]).exists()


WRONG = {
  "a part": (["--num-processes", "2"], "several processes need --coordinator and --process-id too"),
  "no port": (
    ["--coordinator", "host", "--num-processes", "2", "--process-id", "0"],
    "coordinator must read like HOST:PORT, got 'host'",
  ),
  "no process": (
    ["--coordinator", "host:1", "--num-processes", "0", "--process-id", "0"],
    "num_processes must be at least 1, got 0",
  ),
  "a number too high": (
    ["--coordinator", "host:1", "--num-processes", "2", "--process-id", "2"],
    "process_id must be one of 0 to 1",
  ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_options_are_one_line_and_exit_code_2(case, monkeypatch, capsys):
  arguments, message = WRONG[case]
  monkeypatch.setattr(sys, "argv", ["train", *arguments])
  with pytest.raises(SystemExit) as exit_info:
    train.main()
  assert exit_info.value.code == 2
  errors = capsys.readouterr().err
  assert message in errors
  assert errors.count("\n") == 1


SLURM = {"SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "0"}


@pytest.mark.parametrize(
  ("environment", "several"),
  [
    ({}, False),
    (SLURM, True),
    ({**SLURM, "SLURM_STEP_NUM_TASKS": "1"}, False),
    ({"SLURM_NTASKS": "4", "SLURM_JOB_ID": "7"}, False),
    ({"OMPI_COMM_WORLD_SIZE": "2", "OMPI_MCA_orte_hnp_uri": "x"}, True),
    ({"OMPI_COMM_WORLD_SIZE": "1", "OMPI_MCA_orte_hnp_uri": "x"}, False),
    ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, False),
  ],
)
def test_only_clusters_with_several_processes_are_joined(environment, several):
  assert processes.in_cluster({"JAX_PLATFORMS": "cpu", **environment}) == several


def test_one_process_agrees_with_itself():
  assert processes.of_first(lambda: {"a": [1, None]}) == {"a": [1, None]}
  assert processes.on_any(True) is True
  assert processes.on_any(False) is False
  assert processes.part() == (0, 1)


def test_parts_make_up_the_batch():
  split = {"inputs": np.arange(22.0), "labels": np.arange(22)}
  streams = [
    lambda part: itertools.islice(data.batches(split, 8, seed=3, start_step=1, part=part), 4),
    lambda part: data.eval_batches(split, 8, part=part),
  ]
  for stream in streams:
    whole, *parts = (list(stream(part)) for part in [(0, 1), (0, 2), (1, 2)])
    for batch, *own in zip(whole, *parts, strict=True):
      for name, column in batch.items():
        np.testing.assert_array_equal(np.concatenate([part[name] for part in own]), column)
  with pytest.raises(ValueError, match="multiple of the 3 parts, got 8"):
    data.batches(split, 8, seed=0, part=(0, 3))


@pytest.mark.parametrize(
  ("said", "verdict"),
  [
    (b"", "process 3 was killed"),
    (b"an instance of 'gloo::EnforceNotMet'", "the connection to another process broke"),
    (b"unhealthy (stopped sending heartbeats):\n1\nThe tasks have crashed", "process 1 is gone"),
    (b"unhealthy (stopped sending heartbeats):\n2\n7\nThe tasks", "process 2, 7 is gone"),
    (b"Failed to send RPC to coordination service. Either the leader", "process 0 is gone"),
  ],
)
def test_who_is_gone(said, verdict):
  assert _witness.who_is_gone(said, "process 3") == verdict
