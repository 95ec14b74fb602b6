"""Trouble is what the literature says, in the split that it is for, and nothing else changes."""

import json

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from jaxrl import data, synthetic, trouble
from scripts import train

SIZE, CLASSES = 6000, 4


def made(seed=0):
  """Gray pictures with a bar at a height that shows the class, of four classes."""
  rng = np.random.default_rng(seed)

  def split(size):
    labels = rng.permutation(np.arange(size, dtype=np.int32) % CLASSES)
    inputs = rng.uniform(0.3, 0.4, size=(size, 8, 8, 1)).astype(np.float32)
    inputs[np.arange(size), 2 * labels] += np.float32(0.5)
    return {"inputs": inputs, "labels": labels}

  splits = {"train": split(SIZE), "validation": split(400), "test": split(404)}
  return data.Dataset("bars", splits, CLASSES, None)


DATA = made()
TRAIN = DATA.splits["train"]
CHANGES = {
  "symmetric": (lambda d, s: trouble.label_noise(d, 0.4, seed=s), {"train"}),
  "asymmetric": (lambda d, s: trouble.label_noise(d, 0.4, "asymmetric", seed=s), {"train"}),
  "instance": (lambda d, s: trouble.label_noise(d, 0.4, "instance", seed=s), {"train"}),
  "imbalance": (lambda d, s: trouble.imbalance(d, 20, seed=s), {"train"}),
  "subset": (lambda d, s: trouble.subset(d, 100, seed=s), {"train"}),
  "spurious": (lambda d, s: trouble.spurious_groups(d, seed=s), set(data.SPLITS)),
  "noise": (lambda d, s: trouble.shift(d, "noise", seed=s), {"test"}),
}


def same(a, b):
  a, b = data.in_memory(a), data.in_memory(b)
  return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("name", CHANGES)
def test_only_its_splits_change_by_its_seed_alone(name):
  change, splits = CHANGES[name]
  before = made()
  first, again, other = change(DATA, 3), change(DATA, 3), change(DATA, 4)
  for split in data.SPLITS:
    assert same(DATA.splits[split], before.splits[split])
    assert same(first.splits[split], again.splits[split])
    assert same(first.splits[split], DATA.splits[split]) == (split not in splits)
    assert same(first.splits[split], other.splits[split]) == (split not in splits)


class Lazy:
  """A random-access source of a split."""

  def __init__(self, split):
    self.split = split

  def __len__(self):
    return data.size(self.split)

  def __getitems__(self, rows):
    return [{name: values[i] for name, values in self.split.items()} for i in rows]


@pytest.mark.parametrize("name", CHANGES)
def test_sources_are_changed_as_arrays_are(name):
  change, _ = CHANGES[name]
  lazy = data.Dataset("bars", {k: Lazy(v) for k, v in DATA.splits.items()}, CLASSES, None)
  for split in data.SPLITS:
    assert same(change(lazy, 0).splits[split], change(DATA, 0).splits[split])


def transitions(noisy):
  """The share of each noisy label, for each right one."""
  counts = np.zeros((CLASSES, CLASSES))
  np.add.at(counts, (TRAIN["labels"], noisy.splits["train"]["labels"]), 1)
  return counts / counts.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("rate", [0.0, 0.2, 0.6, 1.0])
def test_symmetric_noise_goes_to_every_other_class_alike(rate):
  expected = np.full((CLASSES, CLASSES), rate / (CLASSES - 1))
  np.fill_diagonal(expected, 1 - rate)
  noisy = trouble.label_noise(DATA, rate)
  # Four deviations of a share of 1500.
  np.testing.assert_allclose(transitions(noisy), expected, atol=4 * np.sqrt(0.25 / 1500))
  assert noisy.splits["train"]["labels"].dtype == np.int32
  assert (rate == 0) == (noisy is DATA)


def test_asymmetric_noise_goes_to_the_next_class():
  noisy = trouble.label_noise(DATA, 0.3, "asymmetric")
  expected = 0.7 * np.eye(CLASSES) + 0.3 * np.roll(np.eye(CLASSES), 1, axis=1)
  np.testing.assert_allclose(transitions(noisy), expected, atol=4 * np.sqrt(0.21 / 1500))
  assert (transitions(noisy)[expected == 0] == 0).all()


@pytest.mark.parametrize(("kind", "learnable"), [("instance", True), ("symmetric", False)])
def test_only_instance_noise_can_be_told_from_the_input(kind, learnable):
  rng = np.random.default_rng(0)
  inputs = rng.normal(size=(SIZE, 6)).astype(np.float32)
  dataset = data.Dataset(
    "rows", {**DATA.splits, "train": {**TRAIN, "inputs": inputs}}, CLASSES, None
  )
  noisy = trouble.label_noise(dataset, 0.4, kind).splits["train"]["labels"]
  assert abs((noisy != TRAIN["labels"]).mean() - 0.4) < 4 * np.sqrt(0.25 / SIZE)
  for label in range(CLASSES):
    rows = (noisy != TRAIN["labels"]) & (TRAIN["labels"] == label)
    share = np.bincount(noisy[rows]).max() / rows.sum()
    # A softmax of scores that are linear in the input is what logistic regression fits.
    score = LogisticRegression().fit(inputs[rows][::2], noisy[rows][::2])
    gain = score.score(inputs[rows][1::2], noisy[rows][1::2]) - share
    assert gain > 0.1 if learnable else gain < 0.1


def test_instance_noise_follows_the_papers_formula():
  """Two classes: the other one is certain, so that only q, of known moments, is left."""
  dataset = synthetic.two_moons(20_000)
  clean = dataset.splits["train"]["labels"]
  for rate, mean in ((0.5, 0.5), (0.05, 0.1008)):
    noisy = trouble.label_noise(dataset, rate, "instance").splits["train"]["labels"]
    # The mean of N(0.05, 0.1^2) on [0, 1]: 0.05 + 0.1 phi(0.5) / Phi(0.5).
    assert abs((noisy != clean).mean() - mean) < 4 * np.sqrt(mean * (1 - mean) / len(clean))


def test_the_tail_is_exponential():
  tail = trouble.imbalance(DATA, 27).splits["train"]
  assert np.bincount(tail["labels"]).tolist() == [1500, 500, 167, 56]
  kept = {image.tobytes() for image in TRAIN["inputs"]}
  assert all(image.tobytes() in kept for image in tail["inputs"])
  assert same(trouble.imbalance(DATA, 1).splits["train"], TRAIN)


def test_subsets_are_stratified_and_nested():
  small, large = (trouble.subset(DATA, size).splits["train"] for size in (42, 420))
  assert data.size(small) == 42 and np.ptp(np.bincount(small["labels"])) <= 2
  images = {image.tobytes() for image in large["inputs"]}
  assert all(image.tobytes() in images for image in small["inputs"])
  regression = trouble.subset(synthetic.sparse_regression(100), 7)
  assert regression.splits["train"]["targets"].shape == (7, 1)


def test_groups_are_parity_and_mark():
  marked = trouble.spurious_groups(DATA)
  assert marked.num_groups == 4
  for name, share in (("train", 0.95), ("validation", 0.5), ("test", 0.5)):
    before, after = DATA.splits[name], marked.splits[name]
    mark = after["inputs"][:, 0, 0, 0]
    assert set(mark.tolist()) == {0.0, 1.0}
    np.testing.assert_array_equal(after["group"], 2 * (after["labels"] % 2) + mark)
    counts, half = np.bincount(after["group"]), data.size(before) / 2
    expected = np.array([share, 1 - share, 1 - share, share]) * half
    np.testing.assert_allclose(counts, expected, atol=1)
    np.testing.assert_array_equal(after["labels"], before["labels"])
    np.testing.assert_array_equal(after["inputs"][:, 2:], before["inputs"][:, 2:])
    np.testing.assert_array_equal(after["inputs"][:, :, 2:], before["inputs"][:, :, 2:])
    assert (after["inputs"][:, :2, :2, 0] == mark[:, None, None]).all()


def test_rows_get_the_mark_as_a_feature():
  moons = synthetic.two_moons()
  train_split = trouble.spurious_groups(moons, correlation=1.0).splits["train"]
  np.testing.assert_array_equal(train_split["inputs"][:, 2], 2.0 * train_split["labels"] - 1)
  np.testing.assert_array_equal(train_split["inputs"][:, :2], moons.splits["train"]["inputs"])


def test_noise_has_the_deviation_of_its_severity_and_stays_in_range():
  gray = {**DATA.splits["test"], "inputs": np.full((404, 8, 8, 1), 0.5, np.float32)}
  dataset = data.Dataset("gray", {**DATA.splits, "test": gray}, CLASSES, None)
  for severity, deviation in ((1, 0.08), (2, 0.12)):
    noisy = trouble.shift(dataset, "noise", severity).splits["test"]["inputs"]
    assert noisy.dtype == np.float32
    assert abs(noisy.std() - deviation) < 0.02 * deviation
  strong = trouble.shift(DATA, "noise", 5).splits["test"]["inputs"]
  assert (strong.min(), strong.max()) == (0, 1)


def test_rotation_turns_images_about_their_centre():
  rows, columns = np.mgrid[:33, :33] - 16.0
  angle = np.radians(40)
  spot = np.exp(-((rows + 10 * np.sin(angle)) ** 2 + (columns - 10 * np.cos(angle)) ** 2) / 8)
  test = {"inputs": spot[None, :, :, None].astype(np.float32), "labels": np.zeros(1, np.int32)}
  dataset = data.Dataset("spot", {**DATA.splits, "test": test}, CLASSES, None)
  for severity in (1, 3, 5):
    turned = trouble.shift(dataset, "rotation", severity).splits["test"]["inputs"][0, :, :, 0]
    centre = [(turned * axis).sum() / turned.sum() for axis in (-rows, columns)]
    np.testing.assert_allclose(np.hypot(*centre), 10, rtol=0.02)
    moved = np.degrees(np.arctan2(*centre)) - 40
    np.testing.assert_allclose(np.abs(moved), 15 * severity, atol=1)


def test_options_compose_and_groups_are_of_the_right_labels():
  assert trouble.apply(DATA, trouble.Options()) is DATA
  options = trouble.Options(
    label_noise=0.5, imbalance=10, groups="spurious", shift="rotation", train_size=500
  )
  hard = trouble.apply(DATA, options)
  right = trouble.apply(DATA, trouble.Options(imbalance=10, groups="spurious", train_size=500))
  assert hard.num_examples == 500
  np.testing.assert_array_equal(
    right.splits["train"]["group"] // 2, right.splits["train"]["labels"] % 2
  )
  np.testing.assert_array_equal(hard.splits["train"]["group"], right.splits["train"]["group"])
  wrong = hard.splits["train"]["labels"] != right.splits["train"]["labels"]
  assert 0.4 < wrong.mean() < 0.6
  assert same(hard.splits["validation"], right.splits["validation"])
  assert not same(hard.splits["test"], right.splits["test"])


REGRESSION = synthetic.sparse_regression(50)


@pytest.mark.parametrize(
  ("dataset", "options", "message"),
  [
    (DATA, {"label_noise": 1.5}, r"label_noise must be in \[0, 1\], got 1.5"),
    (DATA, {"label_noise": 0.1, "label_noise_kind": "pair"}, "label_noise_kind must be one of"),
    (DATA, {"imbalance": 0.5}, "imbalance must be at least 1, got 0.5"),
    (DATA, {"train_size": -1}, "train_size must be a whole number of at least 0, got -1"),
    (DATA, {"train_size": 7000}, "train_size must be at most 6000, the training split, got 7000"),
    (DATA, {"groups": "parity"}, "groups must be one of"),
    (DATA, {"shift": "blur"}, "shift must be one of"),
    (DATA, {"shift": "noise", "severity": 6}, r"severity must be in \[1, 5\], got 6"),
    (DATA, {"label_noise": 0.1, "trouble_seed": -1}, "trouble_seed must be a whole number"),
    (REGRESSION, {"label_noise": 0.1}, "label_noise needs `labels`: sparse_regression has none"),
    (REGRESSION, {"imbalance": 2}, "imbalance needs `labels`"),
    (REGRESSION, {"groups": "spurious"}, "groups needs `labels`"),
    (REGRESSION, {"shift": "rotation"}, r"shift rotation needs images .* shape \(100,\)"),
    (synthetic.modular_arithmetic(5), {"groups": "spurious"}, r"groups need images .* \(2, 5\)"),
  ],
)
def test_options_that_cannot_be(dataset, options, message):
  with pytest.raises(ValueError, match=message):
    trouble.apply(dataset, trouble.Options(**options))


def test_the_command_line_makes_trouble_and_writes_it_down(tmp_path, monkeypatch):
  command = ["train", "--dataset", "two_moons", "--model", "mlp", "--epochs", "1"]
  hard = ["--label_noise", "0.5", "--groups", "spurious", "--train_size", "128"]
  rest = ["--objective", "cross_entropy() | group_dro()", "--out", str(tmp_path), "--name", "hard"]
  monkeypatch.setattr("sys.argv", [*command, *hard, *rest, "--progress", "off"])
  train.main()
  config = json.loads((tmp_path / "hard" / "config.json").read_text())
  assert config["trouble"]["label_noise"] == 0.5 and config["trouble"]["groups"] == "spurious"
  assert json.loads((tmp_path / "hard" / "result.json").read_text())["steps"] == 2


def test_a_configuration_without_trouble_is_as_before():
  assert "trouble" not in train._as_json(train.Config())
  hard = train.Config(trouble=trouble.Options(shift="noise"))
  assert train._directory(hard) != train._directory(train.Config())
