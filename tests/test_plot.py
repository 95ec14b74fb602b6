"""Numbers of finished runs against hand calculations, and the command that plots them."""

import json
import sys

import numpy as np
import pytest
from scipy.special import log_softmax

from jaxrl import metrics, plots, predictions, seeds
from scripts import plot, train


def logits_of(probabilities):
  return np.log(np.asarray(probabilities, np.float32))


# Confidences 0.55, 0.7, 0.9, 0.95; right, wrong, right, right.
FOUR = {
  "logits": logits_of([[0.55, 0.45], [0.3, 0.7], [0.9, 0.1], [0.05, 0.95]]),
  "labels": np.array([0, 0, 0, 1]),
  "group": np.array([0, 2, 0, 2]),
}


def test_calibration_error_by_hand():
  # Five bins: (0.4, 0.6] has one, (0.6, 0.8] one, (0.8, 1] two.
  found = plots.reliability(FOUR, bins=5)
  np.testing.assert_array_equal(found.count, [0, 0, 1, 1, 2])
  np.testing.assert_allclose(found.accuracy[2:], [1, 0, 1])
  np.testing.assert_allclose(found.confidence[2:], [0.55, 0.7, 0.925], rtol=1e-6)
  assert np.isnan(found.accuracy[:2]).all()
  assert found.ece == pytest.approx((0.45 + 0.7 + 2 * 0.075) / 4, rel=1e-5)


def test_full_confidence_falls_into_the_last_bin():
  sure = {"logits": np.array([[100.0, 0.0], [0.0, 1e4]]), "labels": np.array([0, 0])}
  found = plots.reliability(sure)
  assert found.count[-1] == 2
  assert found.ece == pytest.approx(0.5)


def test_accuracies_by_hand():
  np.testing.assert_allclose(plots.accuracy_by(FOUR, "labels"), [2 / 3, 1])
  np.testing.assert_allclose(plots.accuracy_by(FOUR, "group"), [1, np.nan, 0.5])
  assert plots.numbers(FOUR) == pytest.approx(
    {
      "accuracy": 0.75,
      "nll": -np.log([0.55, 0.3, 0.9, 0.95]).mean(),
      "ece": plots.reliability(FOUR).ece,
      "worst class": 2 / 3,
      "worst group": 0.5,
    },
    rel=1e-5,
  )


def test_losses_equal_those_of_scipy():
  rng = np.random.default_rng(0)
  logits, labels = rng.normal(size=(20, 4), scale=50), rng.integers(0, 4, 20)
  ours = plots.losses({"logits": logits, "labels": labels})
  np.testing.assert_allclose(ours, -log_softmax(logits, axis=1)[np.arange(20), labels])


def test_interval_of_students_t():
  # The 97.5 % quantile with 4 degrees of freedom is 2.776 in every table.
  values = np.array([[1.0], [2.0], [3.0], [4.0], [5.0]])
  mean, half = plots.interval(values)
  assert mean == 3
  assert half == pytest.approx(2.776 * np.sqrt(2.5 / 5), rel=1e-3)
  np.testing.assert_array_equal(plots.interval(values[:1]).half, [0])


def test_curves_draw_mean_and_band():
  members = [[{"step": 1, "loss": 1.0}, {"step": 2, "loss": value}] for value in (2.0, 4.0)]
  figure = plots.curves({"two": members, "one": members[:1]})
  (axis,) = figure.axes
  two, one = axis.lines
  np.testing.assert_array_equal(two.get_ydata(), [1, 3])
  np.testing.assert_array_equal(one.get_ydata(), [1, 2])
  (band,) = axis.collections
  # 12.706 is the quantile with one degree of freedom; the deviation is sqrt(2).
  assert band.get_paths()[0].vertices[:, 1].max() == pytest.approx(3 + 12.706, rel=1e-4)


def test_bars_have_the_height_of_the_accuracies():
  figure = plots.accuracy_bars({"a": [FOUR], "b": [FOUR, FOUR]}, "labels")
  heights = [bar.get_height() for bar in figure.axes[0].patches]
  np.testing.assert_allclose(heights, [2 / 3, 1] * 2)


def test_padding_and_members_of_batches():
  batch = {"labels": np.array([[1, 2], [1, 2]]), "mask": np.array([[1, 0], [1, 0]])}
  batch["logits"] = np.arange(12.0).reshape(2, 2, 3)
  joined = predictions.joined([batch, batch], axis=1)
  np.testing.assert_array_equal(joined["labels"], [[1, 1], [1, 1]])
  np.testing.assert_array_equal(joined["logits"][1], [[6, 7, 8], [6, 7, 8]])
  assert "mask" not in joined


def call(monkeypatch, program, *arguments):
  monkeypatch.setattr(sys, "argv", ["program", *map(str, arguments)])
  program.main()


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
  """Runs with two members, alone with the seed of one of them, and of a regression."""
  out = tmp_path_factory.mktemp("runs")
  with pytest.MonkeyPatch.context() as patch:
    options = ("--model", "mlp", "--epochs", 1, "--out", out)
    call(patch, train, *options, "--name", "both", "--seeds", 2)
    call(patch, train, *options, "--name", "one", "--seed", 1)
    losses = ("--objective", "squared_error()", "--optimizer", "sgd(0.01)")
    call(patch, train, *options, "--name", "line", "--dataset", "diabetes", *losses)
  return out


@pytest.mark.parametrize("split", predictions.SPLITS)
def test_predictions_of_a_run_have_its_metrics(runs, split):
  final = json.loads((runs / "one" / "result.json").read_text())["final"]
  alone = predictions.read(runs / "one", split)
  found = plots.numbers(alone)
  for name in ("accuracy", "nll"):
    assert found[name] == pytest.approx(final[f"{split}/{name}"], rel=1e-5)
  np.testing.assert_array_equal(alone["index"], np.arange(len(alone["labels"])))
  np.testing.assert_array_equal(alone["group"], alone["labels"] % 2)
  member = predictions.read(runs / "both" / "seed-1", split)
  np.testing.assert_allclose(member["logits"], alone["logits"], rtol=1e-4, atol=1e-4)
  assert not (runs / "line" / predictions.FILE).exists()


def test_plot_writes_every_figure(runs, monkeypatch, capsys):
  call(monkeypatch, plot, runs / "both", runs / "one", runs / "line")
  names = {path.name for path in (runs / "both" / "plots").iterdir()}
  assert names == {f"{n}.png" for n in ("curves", "reliability", "classes", "groups", "losses")}
  for path in (runs / "both" / "plots").iterdir():
    assert path.read_bytes().startswith(b"\x89PNG")
  output = capsys.readouterr().out
  assert "both (2 members)" in output
  assert "no predictions of line: curves only" in output


def test_runs_that_differ_in_the_seed_are_members_of_one(tmp_path):
  for name, seed, rate in [("a", 0, 0.1), ("b", 1, 0.1), ("c", 0, 0.2)]:
    with metrics.MetricsLog(tmp_path / name) as log:
      log.write(1, {"loss": 1.0})
    metrics.write_json(tmp_path / name / "config.json", {"name": name, "seed": seed, "rate": rate})
  groups = plot.grouped([tmp_path / name for name in "abc"])
  assert groups == {"a (2 members)": [tmp_path / "a", tmp_path / "b"], "c": [tmp_path / "c"]}


def test_members_in_lockstep_are_found(tmp_path):
  with seeds.MemberLogs(tmp_path / "run", (3, 4), resume_step=0) as log:
    log.write(1, {"loss": 1.0, "seed-3/loss": 1.0, "seed-4/loss": 1.0})
  (label,) = groups = plot.grouped([tmp_path / "run"])
  assert label == "run (2 members)"
  assert [folder.name for folder in groups[label]] == ["seed-3", "seed-4"]


@pytest.mark.parametrize(
  ("arguments", "message"), [(["nowhere"], "nowhere is no run"), ([], "at least one folder")]
)
def test_errors_are_one_line_and_exit_code_2(arguments, message, monkeypatch, capsys):
  with pytest.raises(SystemExit) as exit_info:
    call(monkeypatch, plot, *arguments)
  assert exit_info.value.code == 2
  errors = capsys.readouterr().err
  assert errors.count("\n") == 1
  assert message in errors
