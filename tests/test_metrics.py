"""What a run records survives kills and resumes, and shows no more than it should."""

import collections
import csv
import io
import json
import os
import struct
import subprocess
import sys
import textwrap
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tensorboardX.proto import event_pb2

from jaxrl import metrics
from jaxrl.metrics import MetricsLog, Progress


class SentState(NamedTuple):
  inner: object
  metrics: dict


class ClippedState(NamedTuple):
  count: jax.Array
  metrics: dict


def sent(value, inner=()):
  return SentState(inner, {"bytes": jnp.asarray(value)})


def test_collects_the_metrics_of_every_method():
  clipped = ClippedState(jnp.zeros(()), {"fraction": jnp.asarray(0.5)})
  masked = optax.MaskedState(inner_state=sent(2.0))
  state = (optax.EmptyState(), sent(1.0, inner=(clipped,)), {"named": masked}, None)
  collected = jax.jit(metrics.collect_metrics)(state)
  assert {name: float(value) for name, value in collected.items()} == {
    "sent/bytes": 1.0,
    "clipped/fraction": 0.5,
    "sent_2/bytes": 2.0,
  }


def test_optax_states_have_no_metrics():
  assert metrics.collect_metrics(optax.adamw(1e-3).init({"w": jnp.ones(2)})) == {}


@pytest.mark.parametrize(
  ("state", "method"),
  [("TopKState", "top_k"), ("EF21State", "ef21"), ("GAMState", "gam"), ("_SamState", "sam")],
)
def test_methods_are_named_after_their_state(state, method):
  kind = collections.namedtuple(state, ["metrics"])
  assert metrics.collect_metrics(kind({"x": 1})) == {f"{method}/x": 1}


def rows_of(folder):
  with open(folder / "metrics.csv", newline="") as file:
    return list(csv.DictReader(file))


def events_of(folder):
  """The events of every file in order of writing, from TensorBoard's record framing."""
  events = []
  for path in sorted(folder.glob("events.out*")):
    content, at = path.read_bytes(), 0
    while at + 12 <= len(content):
      (length,) = struct.unpack_from("<Q", content, at)
      events.append(event_pb2.Event.FromString(content[at + 12 : at + 12 + length]))
      at += 12 + length + 4
  return events


def scalars_of(folder):
  return [
    (event.step, value.tag, value.simple_value)
    for event in events_of(folder)
    for value in event.summary.value
  ]


def write(folder, steps, resume_step=0, **extra):
  with MetricsLog(folder, resume_step=resume_step) as log:
    for step in steps:
      log.write(step, {"loss": jnp.asarray(1 / step, jnp.float32), **extra})


def test_values_come_back_exactly(tmp_path):
  values = np.asarray([1 / 3, 1e-20, 12345.678, np.pi], np.float32)
  with MetricsLog(tmp_path) as log:
    for step, value in enumerate(values, start=1):
      log.write(step, {"loss": jnp.asarray(value)})
  assert [np.float32(row["loss"]) for row in rows_of(tmp_path)] == values.tolist()
  assert scalars_of(tmp_path) == [(i + 1, "loss", float(v)) for i, v in enumerate(values)]


def test_columns_may_come_late_and_rows_in_parts(tmp_path):
  with MetricsLog(tmp_path) as log:
    log.write(1, {"loss": 3.0})
    log.write(2, {"loss": 2.0})
    log.flush()
    log.write(2, {"validation/accuracy": 0.5})
    log.write(3, {"loss": 1.0})
  assert rows_of(tmp_path) == [
    {"step": "1", "loss": "3", "validation/accuracy": ""},
    {"step": "2", "loss": "2", "validation/accuracy": "0.5"},
    {"step": "3", "loss": "1", "validation/accuracy": ""},
  ]
  assert metrics.read_metrics(tmp_path / "metrics.csv")[0] == {"step": 1.0, "loss": 3.0}


def test_many_rows_are_written_without_a_flush(tmp_path):
  with MetricsLog(tmp_path) as log:
    for step in range(1, 301):
      log.write(step, {"loss": 0.0})
    assert len(rows_of(tmp_path)) >= 200


def test_resume_drops_later_rows_and_adds_no_duplicates(tmp_path):
  write(tmp_path, range(1, 8))
  write(tmp_path, range(5, 11), resume_step=4, other=1.0)
  assert [int(row["step"]) for row in rows_of(tmp_path)] == list(range(1, 11))
  assert [row["other"] for row in rows_of(tmp_path)] == [""] * 4 + ["1"] * 6
  purge = [e.step for e in events_of(tmp_path) if e.session_log.status == e.session_log.START]
  assert purge == [1, 5]


def test_a_new_start_drops_everything(tmp_path):
  write(tmp_path, range(1, 4), other=1.0)
  write(tmp_path, [1])
  assert rows_of(tmp_path) == [{"step": "1", "loss": "1"}]


@pytest.mark.parametrize("tail", ["4,0.2", "4", "4,0.25,7\n", "junk,1\n", '"\n', "\0\0"])
def test_a_torn_row_does_not_matter(tmp_path, tail):
  write(tmp_path, range(1, 4))
  with open(tmp_path / "metrics.csv", "a") as file:
    file.write(tail)
  write(tmp_path, [4, 5], resume_step=4)
  assert [row["step"] for row in rows_of(tmp_path)] == ["1", "2", "3", "4", "5"]


@pytest.mark.parametrize("content", ["", "st", "other,loss\n1,2\n"])
def test_a_torn_header_starts_a_new_file(tmp_path, content):
  (tmp_path / "metrics.csv").write_text(content)
  write(tmp_path, [4], resume_step=3)
  assert rows_of(tmp_path) == [{"step": "4", "loss": "0.25"}]


def test_kill_9_loses_no_flushed_row(tmp_path):
  script = textwrap.dedent("""
    import os, sys
    from jaxrl.metrics import MetricsLog
    log = MetricsLog(sys.argv[1])
    for step in range(1, 30):
      log.write(step, {"loss": step})
      if step == 20:
        log.flush()
    os.kill(os.getpid(), 9)
  """)
  subprocess.run([sys.executable, "-c", script, str(tmp_path)], env={**os.environ}, check=False)
  write(tmp_path, [21], resume_step=20)
  assert [int(row["step"]) for row in rows_of(tmp_path)] == list(range(1, 22))


class Terminal(io.StringIO):
  def isatty(self):
    return True


def test_the_bar_shows_what_is_asked():
  stream = Terminal()
  with Progress(40, 25, start_step=10, stream=stream) as progress:
    for _ in range(30):
      progress.step({"loss": jnp.asarray(0.5), "accuracy": jnp.asarray(0.875), "hidden": 3})
      progress._next_look = 0
    progress.epoch(2, 2, {"validation/accuracy": 0.75})
    progress.say("a remark")
  shown = stream.getvalue()
  for text in ("loss 0.5  accuracy 0.875", "examples/s", "left", "100%", "a remark"):
    assert text in shown
  assert "validation/accuracy 0.75" in shown and "hidden" not in shown and " 25%" in shown


def test_the_bar_does_not_wait_for_the_device():
  class Unfinished:
    def is_ready(self):
      return False

    def __float__(self):
      raise AssertionError("waited for the device")

  with Progress(10, 1, stream=Terminal()) as progress:
    progress.step({"loss": Unfinished()})


def test_one_plain_line_an_epoch():
  stream = io.StringIO()
  with Progress(4, 8, show="lines", stream=stream) as progress:
    progress.step({"loss": jnp.asarray(0.5)})
    progress.epoch(1, 2, {"loss": jnp.asarray(0.5), "validation/accuracy": 0.98765})
  assert stream.getvalue() == "epoch 1/2  loss 0.5  validation/accuracy 0.9877\n"


@pytest.mark.parametrize("stream, show", [(io.StringIO(), "auto"), (Terminal(), "off")])
def test_only_remarks_are_shown_when_off_or_not_on_a_terminal(stream, show):
  with Progress(4, 8, show=show, stream=stream) as progress:
    progress.step({"loss": 0.5})
    progress.epoch(1, 2, {"loss": 0.5})
    progress.say("a remark")
  assert stream.getvalue() == "a remark\n"


def test_curves_are_a_picture(tmp_path, capfd):
  with MetricsLog(tmp_path) as log:
    for step in range(1, 6):
      log.write(step, {"loss": 1 / step, "accuracy": float("nan")})
    log.write(5, {"validation/loss": 0.5, "sam/norm": 1.0, "other": float("inf")})
  metrics.plot_curves(tmp_path / "metrics.csv", tmp_path / "curves.png")
  assert (tmp_path / "curves.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
  assert capfd.readouterr() == ("", "")


def test_curves_of_nothing(tmp_path):
  MetricsLog(tmp_path).close()
  metrics.plot_curves(tmp_path / "metrics.csv", tmp_path / "curves.png")
  assert (tmp_path / "curves.png").stat().st_size > 0


def test_json_is_strict_and_whole(tmp_path):
  path = tmp_path / "result.json"
  value = {"a": jnp.asarray(0.5), "b": float("nan"), "c": [np.int64(3), True, None], "d": tmp_path}
  metrics.write_json(path, value)
  assert json.loads(path.read_text()) == {
    "a": 0.5,
    "b": None,
    "c": [3, True, None],
    "d": str(tmp_path),
  }
  with pytest.raises(ValueError, match="size"):
    metrics.write_json(path, {"a": jnp.ones(3)})
  assert json.loads(path.read_text())["a"] == 0.5
