"""scripts.evidence: the rule, tuning, nulls, staleness, and what is committed under docs/."""

import importlib
import json
import subprocess
import sys

import numpy as np
import pytest

from jaxrl import catalogue
from scripts import index
from scripts.evidence import __main__ as command
from scripts.evidence import _report, _results
from scripts.evidence import _training as training
from scripts.evidence._experiment import (
  Claim,
  Experiment,
  OutOfTime,
  Tuned,
  best,
  difference,
  judge,
  overall,
  run,
)
from scripts.train import Config, _as_json, fit, prepare

SEEDS, TUNING = (0, 1, 2, 3, 4), (10, 11, 12)
ABOVE = Claim("above", "score", "higher")


def silent(_line):
  """Instead of print."""


def scores(offset, asked=None):
  """A measurement: the seed's own luck, which arms share, plus what an arm is worth."""

  def measure(seeds):
    if asked is not None:
      asked.append((offset, tuple(seeds)))
    luck = np.array([np.sin(37.0 * seed) for seed in seeds])
    noise = np.array([0.1 * np.cos(91.0 * seed + offset) for seed in seeds])
    return {"score": luck + offset + noise, "curve/score": np.outer(luck, [1.0, 2.0, 3.0])}

  return measure


def planted(method=1.0, null=0.0, claims=(ABOVE,), **options):
  """An experiment whose outcome is known."""
  arms = {"method": method, "baseline": 0.0, "null": null}
  fields = {
    "methods": ("sam",),
    "family": "planted",
    "setup": "Numbers.",
    "arms": {name: {f"offset={offset}": scores(offset)} for name, offset in arms.items()},
    "claims": claims,
    "tuned_by": "score",
    "tuned": "higher",
    "seeds": SEEDS,
    "tuning_seeds": TUNING,
  }
  return Experiment(**{**fields, **options})


def test_the_interval_is_students_t_of_the_paired_differences():
  found = difference(ABOVE, np.array([1.0, 2.0, 3.0, 4.0, 5.0]))
  half = 2.7764451 * np.sqrt(2.5 / 5)  # t of 0.975 at 4 degrees of freedom
  np.testing.assert_allclose(found[:3], [3, 3 - half, 3 + half], rtol=1e-6)
  assert found.verdict == "shown"


@pytest.mark.parametrize(
  ("direction", "margin", "shift", "verdict"),
  [
    ("higher", 0.0, 3.0, "shown"),
    ("higher", 1.0, 3.0, "shown"),
    ("higher", 1.1, 3.0, "not shown"),  # the interval begins at 1.04
    ("higher", 0.0, 1.9, "not shown"),
    ("higher", 0.0, -3.0, "not shown"),
    ("lower", 0.0, -3.0, "shown"),
    ("lower", 1.1, -3.0, "not shown"),
    ("lower", 0.0, 3.0, "not shown"),
    ("higher", 0.0, np.nan, "not shown"),
    ("higher", 0.0, np.inf, "not shown"),
  ],
)
def test_a_claim_is_shown_when_the_whole_interval_is_beyond_the_margin(
  direction, margin, shift, verdict
):
  claim = Claim("", "score", direction, margin)
  with np.errstate(invalid="ignore"):
    assert difference(claim, np.arange(-2.0, 3.0) + shift).verdict == verdict


def test_pairing_takes_away_what_the_seeds_share():
  result = run(planted(method=0.5), silent)
  assert result.verdict == "shown"  # unpaired, the seeds' luck of about 0.7 would hide it
  (judged,) = result.claims
  assert 0.3 < judged.method.mean < 0.7 and judged.null.verdict == "not shown"


def test_a_null_that_is_shown_makes_the_experiment_invalid():
  assert run(planted(null=1.0), silent).verdict == "invalid"


def test_a_null_may_have_a_baseline_of_its_own():
  arms = {name: Tuned({}, "", {"score": np.full(5, x)}) for name, x in [("a", 3.0), ("b", 2.0)]}
  claim = Claim("", "score", "higher", 0.0, "a", "b", "a", null_baseline="a")
  judged = judge(claim, arms)
  assert (judged.method.mean, judged.null.mean) == (1.0, 0.0)


def test_claims_that_differ_are_mixed():
  below = Claim("below", "score", "lower")
  result = run(planted(claims=(ABOVE, below)), silent)
  assert [judged.method.verdict for judged in result.claims] == ["shown", "not shown"]
  assert result.verdict == overall(result.claims) == "mixed"


def test_settings_are_chosen_by_validation_on_other_seeds():
  asked = []
  grid = {f"offset={offset}": scores(offset, asked) for offset in (1.0, 5.0, 2.0)}
  arms = {"method": grid, "baseline": grid, "null": grid}
  result = run(planted(arms=arms), silent)
  assert result.arms["method"].chosen == "offset=5.0"
  assert asked[:3] == [(offset, TUNING) for offset in (1.0, 5.0, 2.0)]
  assert asked[3] == (5.0, SEEDS) and len(asked) == 12


def test_the_best_setting_is_the_first_of_equals_and_never_one_that_is_no_number():
  assert best({"a": np.nan, "b": 1.0, "c": 1.0}, "higher") == "b"
  assert best({"a": np.inf, "b": 2.0, "c": 1.0}, "lower") == "c"


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"seeds": (0, 1, 2, 3)}, "seeds must be at least five, got"),
    ({"tuning_seeds": (4, 5)}, "tuning_seeds must be others than seeds"),
    ({"claims": (ABOVE._replace(method="other"),)}, "method must be one of"),
    ({"claims": (ABOVE._replace(null_baseline="other"),)}, "null_baseline must be one of"),
    ({"claims": (ABOVE._replace(direction="up"),)}, "direction must be one of"),
    ({"claims": (ABOVE._replace(margin=-1.0),)}, "margin must be at least 0, got -1"),
  ],
)
def test_an_experiment_says_what_is_wrong_with_it(options, message):
  with pytest.raises(ValueError, match=message):
    planted(**options)


def test_grids_must_be_equally_large():
  one, two = {"a": scores(0.0)}, {"a": scores(0.0), "b": scores(1.0)}
  with pytest.raises(ValueError, match="grids of the same size"):
    planted(arms={"method": two, "baseline": one, "null": one})


def test_an_experiment_stops_at_its_time_limit():
  with pytest.raises(OutOfTime, match="it was to take 0 s"):
    run(planted(minutes=0.0), silent)


def written(folder, experiment, name="sam"):
  """The result of an experiment on disk, as JSON."""
  _report.write(folder, name, experiment, run(experiment, silent))
  return json.loads((folder / f"{name}.json").read_text())


def test_a_result_is_written_as_numbers_figure_and_table(tmp_path):
  stored = written(tmp_path, planted())
  assert stored["verdict"] == "shown" and stored["arms"]["method"]["chosen"] == "offset=1.0"
  assert len(stored["arms"]["baseline"]["measured"]["score"]) == len(SEEDS)
  assert set(stored["files"]) == {"optimizers/sam.py", "scripts/evidence/sam.py"}
  assert (tmp_path / "sam.png").stat().st_size > 1000
  page = (tmp_path / "README.md").read_text()
  assert "## Planted" in page and "| [sam](#sam) | above | score |" in page
  assert "| shown |" in page and "stale" not in page.partition("## Planted")[2]


def test_what_is_not_finite_survives_json(tmp_path):
  stored = written(tmp_path, planted(method=np.nan))
  assert stored["claims"][0]["difference"]["mean"] is None
  assert "not a number" in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize("changed", ["optimizers/sam.py", "scripts/evidence/sam.py"])
def test_a_changed_file_makes_the_verdict_stale_in_table_and_index(tmp_path, monkeypatch, changed):
  for path in ("optimizers/sam.py", "scripts/evidence/sam.py"):
    (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / path).write_bytes((_results.ROOT / path).read_bytes())
  monkeypatch.setattr(_results, "ROOT", tmp_path)
  results = tmp_path / "results"
  written(results, planted())
  sam = next(entry for entry in catalogue.catalogue() if entry.name == "sam")
  monkeypatch.setattr(_results.by_method, "__defaults__", (results,))
  assert "[shown](docs/evidence/README.md#sam)" in index.index((sam,))
  with (tmp_path / changed).open("a") as file:
    file.write("# a change\n")
  assert _results.by_method(results) == {"sam": {"sam": "stale"}}
  assert "[stale](docs/evidence/README.md#sam)" in index.index((sam,))
  _report.write_table(results)
  page = (results / "README.md").read_text()
  assert "| stale |" in page and "Verdict: stale" in page


def test_a_method_must_be_in_the_catalogue():
  with pytest.raises(ValueError, match="methods must be in the catalogue, got \\['nothing'\\]"):
    _results.hashes("sam", ("nothing",))


@pytest.mark.parametrize("name", _results.names())
def test_every_experiment_can_be_made_and_is_about_methods_that_there_are(name):
  experiment = importlib.import_module(f"scripts.evidence.{name}").EXPERIMENT
  assert _results.hashes(name, experiment.methods)
  assert experiment.minutes <= 5 or "minutes" in experiment.setup


def test_the_committed_table_is_that_of_the_committed_results():
  results = _results.read()
  assert set(results) <= set(_results.names())
  page = (_results.FOLDER / "README.md").read_text(encoding="utf-8")
  assert page == _report.markdown(results)
  for name in results:
    assert (_results.FOLDER / f"{name}.png").exists()


def run_command(*arguments, capsys, monkeypatch):
  """Exit status, output and errors of the command line."""
  monkeypatch.setattr(sys, "argv", ["evidence", *arguments])
  with pytest.raises(SystemExit) as leaving:
    command.main()
  return leaving.value.code, *capsys.readouterr()


def test_the_command_runs_what_it_names_and_fails_where_a_null_is_shown(
  tmp_path, capsys, monkeypatch
):
  experiments = {"sam": planted(), "elr": planted(null=1.0)}
  monkeypatch.setattr(command, "experiment", lambda name: experiments[name])
  arguments = ("--out", str(tmp_path))
  code, out, _ = run_command("sam", *arguments, capsys=capsys, monkeypatch=monkeypatch)
  assert code == 0 and "sam: shown" in out and (tmp_path / "sam.json").exists()
  code, out, err = run_command("elr", *arguments, capsys=capsys, monkeypatch=monkeypatch)
  assert code == 1 and "elr: invalid" in out and "the null came out as shown" in err
  assert "invalid" in (tmp_path / "README.md").read_text()


def test_the_command_says_when_time_is_over(tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(command, "experiment", lambda name: planted())
  arguments = ("sam", "--out", str(tmp_path), "--minutes", "0")
  code, _, err = run_command(*arguments, capsys=capsys, monkeypatch=monkeypatch)
  assert code == 1 and "error: sam:" in err and not (tmp_path / "sam.json").exists()


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (("nothing",), "no experiment 'nothing': there are "),
    (("--family", "nothing"), "no family 'nothing': there are"),
  ],
)
def test_unknown_names_get_one_line(arguments, message, capsys, monkeypatch):
  code, _, err = run_command(*arguments, capsys=capsys, monkeypatch=monkeypatch)
  assert code == 2 and err.startswith(f"error: {message}") and err.count("\n") == 1


def test_a_family_is_all_of_its_experiments():
  found = command.chosen(command.Config(family="sharpness"))
  assert "sam" in found and all(e.family == "sharpness" for e in found.values())


def test_results_are_read_without_jax():
  code = "import sys; from scripts.evidence import _results; _results.by_method()"
  subprocess.run([sys.executable, "-c", f"{code}; assert 'jax' not in sys.modules"], check=True)


def test_a_training_arm_is_the_run_of_the_command_line(tmp_path):
  config = Config(model="mlp", optimizer="sgd(0.1)", epochs=2, seed=3, progress="off")
  values = training.trained(config)((3, 4))
  final = fit(prepare(config), tmp_path, _as_json(config))["final"]
  for name in ("test/accuracy", "test/nll", "validation/accuracy"):
    np.testing.assert_allclose(values[name][0], final[name], rtol=1e-4)
  assert values["curve/loss"].shape == (2, 2)


@pytest.mark.full
def test_a_training_arm_sees_trouble_changes_and_its_own_statistics():
  config = Config(model="mlp", epochs=1, trouble=training.trouble.Options(train_size=200))

  def halved(dataset):
    train = {name: x[:100] for name, x in dataset.splits["train"].items()}
    return training.dataclasses.replace(dataset, splits={**dataset.splits, "train": train})

  def examples(trained):
    return {"train/examples": float(len(trained.predictions["train"]["labels"]))}

  assert training.trained(config, examples)((0,))["train/examples"] == [200]
  assert training.trained(config, examples, halved)((0,))["train/examples"] == [100]


def test_a_grid_has_a_setting_for_each_combination():
  arm = training.grid(Config(), optimizer=["sgd(0.1)", "adam(0.1)"], epochs=[5, 10])
  assert list(arm) == [
    "sgd(0.1), epochs=5",
    "sgd(0.1), epochs=10",
    "adam(0.1), epochs=5",
    "adam(0.1), epochs=10",
  ]
