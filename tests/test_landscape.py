"""The program that shows a finished run's landscape, and the figures that it draws."""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrl import data, plots
from scripts import _finished, landscape, train
from tests import tiers

pytestmark = tiers.unless_changed("scripts/landscape.py", "jaxrl/diagnostics/")

QUICK = ("--examples", 64, "--order", 8, "--probes", 1, "--count", 3)
FEW = (*QUICK, "--points", 5, "--plane-points", 3)


def call(monkeypatch, program, *arguments):
  monkeypatch.setattr(sys, "argv", ["program", *map(str, arguments)])
  program.main()


def trained(out, *arguments):
  with pytest.MonkeyPatch.context() as patch:
    call(patch, train, "--model", "mlp", "--epochs", 1, "--out", out, *arguments)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
  out = tmp_path_factory.mktemp("runs")
  trained(out, "--name", "one", "--precision", "bfloat16", "--optimizer", "adamw(1e-3)")
  trained(out, "--name", "both", "--seeds", 2, "--seed", 3)
  losses = ("--objective", "squared_error()", "--optimizer", "sgd(0.01)")
  trained(out, "--name", "line", "--dataset", "diabetes", *losses)
  return out


def error_of(capsys, *arguments):
  with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as exit_info:
    call(patch, landscape, *arguments)
  assert exit_info.value.code == 2
  errors = capsys.readouterr().err
  assert errors.count("\n") == 1
  return errors


def test_everything_is_written_and_told(runs, monkeypatch, capsys):
  call(monkeypatch, landscape, runs / "one", *FEW)
  folder = runs / "one" / "landscape"
  pictures = ("spectrum", "lines", "plane", "criticality", "classes")
  assert {p.name for p in folder.iterdir()} == {"landscape.json", *(f"{n}.png" for n in pictures)}
  for name in pictures:
    assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
  output = capsys.readouterr().out
  for line in ("train, 64 examples", "largest eigenvalue", "worst rise within 0.05", "class"):
    assert line in output
  found = json.loads((folder / "landscape.json").read_text())
  assert np.sum(found["spectrum"]["weights"]) == pytest.approx(1, rel=1e-5)
  assert found["lines"]["initial"]["at"][0] == -0.1
  assert np.shape(found["plane"]["loss"]) == (3, 3)
  centre = found["loss"]
  assert found["plane"]["loss"][1][1] == pytest.approx(centre, rel=1e-5)
  assert found["lines"]["random"]["loss"][2] == pytest.approx(centre, rel=1e-5)
  assert sorted(found["criticality"]) == [f"Dense_{i}/kernel" for i in range(3)]
  assert found["extremes"]["largest"][0] > found["extremes"]["smallest"][0]
  assert len(found["classes"]["smallest"]) == 10


def test_the_loss_is_that_of_the_run(runs):
  for name, metric in (("one", "nll"), ("line", "squared_error")):
    run = _finished.load(runs / name)
    final = json.loads((runs / name / "result.json").read_text())["final"]
    what = landscape.problem(run, "test", 10**6)
    assert what.examples == data.size(run.dataset.splits["test"])
    # The run's own evaluation was in bfloat16 where training was.
    assert what.loss(run.state.params) == pytest.approx(final[f"test/{metric}"], rel=1e-2)


def test_the_loss_of_some_examples_and_of_classes_by_hand(runs):
  run = _finished.load(runs / "one")
  what = landscape.problem(run, "validation", 50)
  split = data.in_memory(run.dataset.splits["validation"])
  inputs, labels = jnp.asarray(split["inputs"][:50]), np.asarray(split["labels"][:50])
  hidden = inputs.reshape(50, -1)
  for i in range(3):
    layer = run.state.params[f"Dense_{i}"]
    hidden = jax.nn.relu(hidden) if i else hidden
    hidden = hidden @ layer["kernel"] + layer["bias"][None]
  losses = np.asarray(optax.softmax_cross_entropy_with_integer_labels(hidden, labels))
  assert what.loss(run.state.params) == pytest.approx(losses.mean(), rel=1e-5)
  assert what.class_loss is not None
  found = what.class_loss(run.state.params, jnp.array(7))
  assert found == pytest.approx(losses[labels == 7].mean(), rel=1e-5)
  assert what.class_loss(run.state.params, jnp.array(11)) == 0
  np.testing.assert_array_equal(what.present, np.unique(labels))


def test_classes_without_examples_are_not_a_number(runs):
  run = _finished.load(runs / "one")
  found = landscape._classes(landscape.problem(run, "train", 3), run, jax.random.key(0), 2)
  present = np.unique(data.in_memory(run.dataset.splits["train"])["labels"][:3])
  np.testing.assert_array_equal(np.flatnonzero(np.isfinite(found["smallest"])), present)


@pytest.mark.full
def test_a_regression_has_no_classes(runs, monkeypatch, capsys):
  call(monkeypatch, landscape, runs / "line", *FEW)
  capsys.readouterr()
  names = {path.name for path in (runs / "line" / "landscape").iterdir()}
  assert "classes.png" not in names and "spectrum.png" in names


def test_members_in_lockstep(runs, tmp_path, capsys):
  assert "has 2 members: name one, such as" in error_of(capsys, runs / "both")
  members = [_finished.load(runs / "both" / f"seed-{seed}") for seed in (3, 4)]
  final = json.loads((runs / "both" / "result.json").read_text())["members"]
  for seed, member in zip((3, 4), members, strict=True):
    loss = landscape.problem(member, "test", 10**6).loss
    assert loss(member.state.params) == pytest.approx(final[f"seed-{seed}"]["test/nll"], rel=1e-4)
  kernels = [member.initial["Dense_0"]["kernel"] for member in members]
  assert not np.array_equal(*kernels)


def test_members_one_after_the_other(tmp_path, capsys):
  trained(tmp_path, "--name", "both", "--seeds", 2, "--patience", 5)
  assert "has 2 members: name one, such as" in error_of(capsys, tmp_path / "both")
  member = _finished.load(tmp_path / "both" / "seed-1")
  assert int(member.state.seed) == 1


def test_an_answer_that_is_not_params_is_the_centre_alone(runs, monkeypatch):
  def zeros(state, params):
    return jax.tree.map(jnp.zeros_like, params) if state else params

  monkeypatch.setattr("jaxrl.train.eval_params", zeros)
  run = _finished.load(runs / "one")
  loss = landscape.problem(run, "train", 20).loss
  assert loss(run.state.params) == pytest.approx(np.log(10), rel=1e-5)
  assert abs(loss(run.initial) - np.log(10)) > 1e-3


def test_runs_of_a_mesh(tmp_path):
  trained(tmp_path, "--name", "mesh", "--mesh", "data=8", "--dataset", "iris", "--batch-size", 16)
  run = _finished.load(tmp_path / "mesh")
  assert run.places == 8
  what = landscape.problem(run, "train", 50)
  config = tmp_path / "mesh" / "config.json"
  config.write_text(config.read_text().replace("data=8", "data=2"))
  alone = _finished.load(tmp_path / "mesh")
  assert alone.places == 1
  expected = float(landscape.problem(alone, "train", 50).loss(alone.state.params))
  assert what.loss(run.state.params) == pytest.approx(expected, rel=1e-5)


def test_what_is_no_finished_run_is_told_in_one_line(runs, tmp_path, capsys):
  assert "is no run: it has no config.json" in error_of(capsys, tmp_path / "nowhere")
  (tmp_path / "config.json").write_text("{")
  assert "has not finished: it has no result.json" in error_of(capsys, tmp_path)
  (tmp_path / "result.json").write_text("{}")
  assert "config.json is damaged" in error_of(capsys, tmp_path)
  (tmp_path / "config.json").write_text('{"colour": 3}')
  assert "is of another version" in error_of(capsys, tmp_path)
  (tmp_path / "config.json").write_text((runs / "one" / "config.json").read_text())
  assert "has no checkpoint" in error_of(capsys, tmp_path)
  assert "order must be a whole number" in error_of(capsys, runs / "one", "--order", 0)
  assert "examples must be a whole number" in error_of(capsys, runs / "one", "--examples", 0)


def test_figures_show_the_numbers():
  figure = plots.spectrum(np.linspace(-1, 2, 5), np.array([0, 1, 3, 1, 0.0]), np.array([2.0, 1.0]))
  density, ticks = figure.axes[0].lines
  np.testing.assert_array_equal(density.get_ydata(), [0, 1, 3, 1, 0])
  np.testing.assert_array_equal(ticks.get_xdata(), [2, 1])
  lines = {name: {"at": np.arange(3), "loss": np.arange(3) ** 2} for name in ("a", "b")}
  figure = plots.loss_lines(lines)
  assert [axis.get_title() for axis in figure.axes] == ["a", "b"]
  np.testing.assert_array_equal(figure.axes[1].lines[0].get_ydata(), [0, 1, 4])
  bars = plots.bars("rise", {"kernel": 2.0}).axes[0].patches
  assert [bar.get_width() for bar in bars] == [2.0]
  figure = plots.class_extremes(np.array([-1.0, np.nan]), np.array([3.0, 4.0]))
  assert [[bar.get_height() for bar in axis.patches] for axis in figure.axes] == [[-1, 0], [3, 4]]
  assert plots.loss_plane(np.linspace(-1, 1, 3), np.ones((3, 3)) + np.eye(3)).axes
