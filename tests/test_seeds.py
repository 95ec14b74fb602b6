"""Several seeds of one run: each member equals its run alone."""

import csv
import json
import sys

import numpy as np
import pytest

from jaxrl import seeds
from scripts import train


def run(monkeypatch, folder, *arguments):
  where = ["--out", str(folder.parent), "--name", folder.name]
  monkeypatch.setattr(sys, "argv", ["train", "--epochs", "1", *where, *arguments])
  train.main()
  return json.loads((folder / "result.json").read_text())


def rows_of(folder):
  rows = csv.DictReader((folder / "metrics.csv").read_text().splitlines())
  return [{name: float(cell) for name, cell in row.items() if cell} for row in rows]


def assert_same_member(summary, member, alone):
  assert summary["members"][member].keys() == alone["final"].keys()
  for name, value in alone["final"].items():
    np.testing.assert_allclose(summary["members"][member][name], value, rtol=1e-5, atol=1e-5)


def test_a_member_in_lockstep_equals_its_run_alone(monkeypatch, tmp_path, capsys):
  arguments = ["--model", "mlp", "--objective", "elr() | group_dro()"]
  summary = run(monkeypatch, tmp_path / "all", *arguments, "--seed", "3", "--seeds", "3")
  assert "mean of 3" in capsys.readouterr().out
  alone = run(monkeypatch, tmp_path / "one", *arguments, "--seed", "4")
  assert_same_member(summary, "seed-4", alone)
  for ours, theirs in zip(
    rows_of(tmp_path / "all" / "seed-4"), rows_of(tmp_path / "one"), strict=True
  ):
    assert ours == pytest.approx(theirs, rel=1e-5, abs=1e-5)
  values = [member["test/nll"] for member in summary["members"].values()]
  assert summary["final"]["test/nll"] == pytest.approx(np.mean(values))
  assert summary["deviation"]["test/nll"] == pytest.approx(np.std(values, ddof=1))


@pytest.mark.full
def test_a_member_in_turn_is_its_run_alone(monkeypatch, tmp_path):
  summary = run(monkeypatch, tmp_path / "all", "--model", "cnn", "--seeds", "2")
  alone = run(monkeypatch, tmp_path / "one", "--model", "cnn", "--seed", "1")
  assert summary["members"]["seed-1"] == alone["final"]
  assert rows_of(tmp_path / "all" / "seed-1") == rows_of(tmp_path / "one")


def test_members_that_may_stop_early_run_in_turn(monkeypatch, tmp_path):
  run(monkeypatch, tmp_path / "all", "--model", "mlp", "--seeds", "2", "--patience", "1")
  assert (tmp_path / "all" / "seed-1" / "result.json").exists()


def test_names_of_members():
  assert seeds.member_of("validation/seed-12/nll") == (12, "validation/nll")
  assert seeds.member_of("seed-0/group_dro/q_1") == (0, "group_dro/q_1")
  assert seeds.member_of("group_dro/q_1") == (None, "group_dro/q_1")
