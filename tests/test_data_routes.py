"""Where data comes from: TFDS, formulas, NPZ files and folders of images."""

import dataclasses
import json

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from jaxrl import _rows, data, synthetic, trouble
from jaxrl.fit import fit
from scripts import train

CLASSES = 3


def pictures(size, seed=0):
  rng = np.random.default_rng(seed)
  return rng.integers(256, size=(size, 6, 5, 3), dtype=np.uint8)


class TinyPictures(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """Forty random pictures, and ten for one more split; the label is the number modulo 3."""

  name = "tiny_pictures"
  VERSION = tfds.core.Version("1.0.0")
  extra_split = "test"
  keys = ("image", "label")
  label = tfds.features.ClassLabel(num_classes=CLASSES)
  image = tfds.features.Image(shape=(6, 5, 3))

  def _info(self):
    features = tfds.features.FeaturesDict({"image": self.image, "label": self.label})
    return tfds.core.DatasetInfo(builder=self, features=features, supervised_keys=self.keys)

  def _split_generators(self, dl_manager):
    return {
      "train": self._generate_examples(40, 0),
      self.extra_split: self._generate_examples(10, 1),
    }

  def _generate_examples(self, size, seed):
    for i, pixels in enumerate(pictures(size, seed)):
      yield i, {"image": Image.fromarray(pixels), "label": i % CLASSES}


def prepared(folder, **attributes):
  make = type(
    "TinyPictures", (TinyPictures,), {**attributes, "__module__": __name__}, skip_registration=True
  )
  data.prepare(lambda: make(data_dir=folder, file_format="array_record"), folder)
  return folder


def rows_of(arrays):
  """The examples as a multiset that can be compared."""
  names = sorted(arrays)
  return sorted(
    tuple(np.asarray(value).tobytes() for value in row)
    for row in zip(*(arrays[name] for name in names), strict=True)
  )


def joined(splits):
  return {
    name: np.concatenate([split[name] for split in splits]) for name in data.in_memory(splits[0])
  }


def expected_pictures(size, seed):
  images = pictures(size, seed).astype(np.float32) / np.float32(255)
  return rows_of({"inputs": images, "labels": np.arange(size, dtype=np.int32) % CLASSES})


def test_any_tfds_name_is_read_at_random(tmp_path):
  dataset = data.load("tiny_pictures", prepared(tmp_path))
  assert (dataset.num_classes, dataset.num_groups, dataset.num_examples) == (CLASSES, None, 36)
  assert not isinstance(dataset.splits["train"], dict)
  batch = next(data.batches(dataset.splits["train"], 8, seed=0))
  assert batch["inputs"].shape == (8, 6, 5, 3) and batch["inputs"].dtype == np.float32
  assert batch["labels"].dtype == np.int32
  splits = {name: data.in_memory(split) for name, split in dataset.splits.items()}
  assert data.size(splits["validation"]) == 4
  assert rows_of(joined([splits["train"], splits["validation"]])) == expected_pictures(40, 0)
  assert rows_of(splits["test"]) == expected_pictures(10, 1)
  again = data.load("tiny_pictures", tmp_path).splits["validation"]
  assert rows_of(data.in_memory(again)) == rows_of(splits["validation"])


def test_files_are_read_without_the_code_that_made_them(tmp_path):
  """TFDS's own code of titanic needs TensorFlow to be imported."""
  assert data.load("titanic", prepared(tmp_path, name="titanic")).num_examples == 36


def test_no_name_leads_to_the_network(tmp_path):
  with pytest.raises(ValueError, match="names with a colon lead to other places"):
    data.load("huggingface:mnist", tmp_path, download=True)


def test_without_a_test_split_tfds_validation_is_it(tmp_path):
  dataset = data.load("tiny_pictures", prepared(tmp_path, extra_split="validation"))
  assert rows_of(data.in_memory(dataset.splits["test"])) == expected_pictures(10, 1)
  assert (data.size(dataset.splits["validation"]), dataset.num_examples) == (4, 36)


def test_numbers_to_predict_become_targets(tmp_path):
  number = tfds.features.Scalar(np.float32)
  dataset = data.load("tiny_pictures", prepared(tmp_path, label=number))
  targets = data.in_memory(dataset.splits["test"])["targets"]
  assert dataset.num_classes is None and targets.shape == (10, 1)
  assert sorted(targets[:, 0].tolist()) == sorted(float(i % CLASSES) for i in range(10))


@pytest.mark.parametrize(
  ("attributes", "message"),
  [
    ({"keys": None}, "doesn't say which features"),
    ({"image": tfds.features.Image(shape=(None, None, 3))}, "'image' must have one shape"),
    ({"label": tfds.features.Sequence(np.int64)}, "'label' must be numbers or images"),
    ({"extra_split": "rest"}, None),
  ],
)
def test_tfds_sets_that_batches_cannot_hold(tmp_path, attributes, message):
  if attributes.get("label"):
    attributes = {**attributes, "_generate_examples": _lists}
  folder = prepared(tmp_path, **attributes)
  if message is None:
    assert data.load("tiny_pictures", folder).num_examples == 32
    return
  with pytest.raises(ValueError, match=message) as error:
    data.load("tiny_pictures", folder)
  assert "tiny_pictures" in str(error.value) and "\n" not in str(error.value)


def _lists(self, size, seed):
  for i, pixels in enumerate(pictures(size, seed)):
    yield i, {"image": Image.fromarray(pixels), "label": [i]}


def test_what_is_not_prepared_is_not_downloaded(tmp_path, monkeypatch):
  def refuse(*arguments, **options):
    raise AssertionError("asked the network")

  monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", refuse)
  with pytest.raises(ValueError, match=r"mnist is not prepared in .*: pass --download"):
    data.load("mnist", tmp_path)


def test_a_failed_download_is_one_line(tmp_path, monkeypatch):
  def fail(*arguments, **options):
    raise ConnectionError("no route\nto host")

  monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", fail)
  with pytest.raises(ValueError, match=r"cannot prepare mnist: ConnectionError: no route$"):
    data.load("mnist", tmp_path, download=True)


def test_every_beginning_has_each_classs_share():
  labels = np.repeat([0, 1, 2], [60, 30, 10])
  order = _rows.shuffled_by_class(labels, 100, np.random.default_rng(3))
  assert sorted(order.tolist()) == list(range(100))
  for count in (10, 33, 70):
    counts = np.bincount(labels[order[:count]], minlength=3)
    assert np.abs(counts - count * np.array([0.6, 0.3, 0.1])).max() <= 2


@pytest.mark.parametrize("name", data.SYNTHETIC)
def test_synthetic_sets_are_functions_of_their_seed(name):
  make = getattr(synthetic, name)
  first, again, other = make(), data.load(name), make(seed=1)
  assert first.name == name
  for split in data.SPLITS:
    assert {column.dtype.name for column in first.splits[split].values()} <= {"float32", "int32"}
    assert rows_of(first.splits[split]) == rows_of(again.splits[split])
  assert rows_of(first.splits["train"]) != rows_of(other.splits["train"])
  assert next(data.batches(first.splits["train"], 16, seed=0))["mask"].sum() == 16


def test_two_moons_without_noise_lie_on_their_circles():
  whole = joined(list(synthetic.two_moons(500, noise=0).splits.values()))
  x, y = whole["inputs"].T
  first = whole["labels"] == 0
  np.testing.assert_allclose((x**2 + y**2)[first], 1, rtol=1e-5)
  np.testing.assert_allclose(((x - 1) ** 2 + (y - 0.5) ** 2)[~first], 1, rtol=1e-5)
  assert y[first].min() >= -1e-6 and y[~first].max() <= 0.5 + 1e-6 and first.sum() == 250


def test_spirals_without_noise_lie_on_their_arms():
  whole = joined(list(synthetic.spirals(300, num_classes=4, turns=2, noise=0).splits.values()))
  points = whole["inputs"].astype(np.float64) @ [1, 1j]
  unwound = points * np.exp(-2j * np.pi * (2 * np.abs(points) + whole["labels"] / 4))
  np.testing.assert_allclose(unwound.imag, 0, atol=1e-5)
  assert unwound.real.min() >= 0 and np.bincount(whole["labels"]).tolist() == [75] * 4


def test_modular_arithmetic_has_every_sum_once():
  dataset = synthetic.modular_arithmetic(7, train_share=0.4)
  assert [data.size(dataset.splits[split]) for split in data.SPLITS] == [20, 14, 15]
  whole = joined(list(dataset.splits.values()))
  np.testing.assert_array_equal(whole["inputs"].sum(axis=-1), 1)
  a, b = whole["inputs"].argmax(axis=-1).T
  assert sorted(zip(a, b, strict=True)) == [(i, j) for i in range(7) for j in range(7)]
  np.testing.assert_array_equal(whole["labels"], (a + b) % 7)


def test_sparse_regression_is_solved_by_few_features():
  train = synthetic.sparse_regression(400, num_features=50, num_nonzero=4, noise=0).splits["train"]
  weights = np.linalg.lstsq(train["inputs"], train["targets"], rcond=None)[0][:, 0]
  np.testing.assert_allclose(np.sort(np.abs(weights))[-4:], 0.5, rtol=1e-4)
  np.testing.assert_allclose(np.sort(np.abs(weights))[:-4], 0, atol=1e-4)


def test_groups_of_quadratics_have_optima_of_their_own():
  def solutions(heterogeneity):
    dataset = synthetic.heterogeneous_quadratics(num_groups=3, heterogeneity=heterogeneity)
    train = dataset.splits["train"]
    pick = [train["group"] == g for g in range(3)]
    return [
      np.linalg.lstsq(train["inputs"][rows], train["targets"][rows], rcond=None) for rows in pick
    ]

  assert max(np.abs(a - b).max() for (a, *_), (b, *_) in [solutions(0)[:2]]) < 1e-4
  different = solutions(1)
  assert all(residual < 1e-4 for _, residual, *_ in different)
  assert np.abs(different[0][0] - different[1][0]).max() > 0.5


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (lambda: synthetic.two_moons(4), "num_examples must be a whole number of at least 5, got 4"),
    (lambda: synthetic.spirals(noise=-1), "noise must be at least 0"),
    (lambda: synthetic.modular_arithmetic(2), "modulus must be a whole number of at least 3"),
    (lambda: synthetic.modular_arithmetic(train_share=1), "train_share must be in"),
    (lambda: synthetic.sparse_regression(num_features=3), r"num_nonzero must be in \[1, 3\]"),
    (lambda: synthetic.heterogeneous_quadratics(heterogeneity=-1), "heterogeneity must be"),
  ],
)
def test_bad_arguments_of_synthetic_sets(call, message):
  with pytest.raises(ValueError, match=message):
    call()


def table(size=50):
  rng = np.random.default_rng(0)
  return {"inputs": rng.normal(size=(size, 4)), "labels": np.arange(size) % 5}


def saved(folder, arrays):
  np.savez(folder / "own.npz", **arrays)
  return str(folder / "own.npz")


def test_npz_without_splits_is_cut_by_class(tmp_path):
  dataset = data.load(saved(tmp_path, table()))
  assert (dataset.name, dataset.num_classes, dataset.num_groups) == ("own", 5, None)
  assert [data.size(dataset.splits[split]) for split in data.SPLITS] == [40, 5, 5]
  for split in dataset.splits.values():
    assert np.bincount(split["labels"]).min() >= len(split["labels"]) // 5 - 1
  whole = {name: values.astype(t) for (name, values), t in zip(table().items(), "fi", strict=True)}
  assert rows_of(joined(list(dataset.splits.values()))) == rows_of(whole)


def test_npz_with_splits_groups_and_targets(tmp_path):
  split = np.array(["train"] * 30 + ["test"] * 15 + ["validation"] * 5)
  arrays = {
    "inputs": np.arange(200, dtype=np.uint8).reshape(50, 2, 2, 1),
    "targets": np.arange(50),
    "group": np.arange(50) % 4,
    "split": split,
  }
  dataset = data.load(saved(tmp_path, arrays))
  assert (dataset.num_classes, dataset.num_groups) == (None, 4)
  test = dataset.splits["test"]
  assert test["targets"].tolist() == [[float(i)] for i in range(30, 45)]
  np.testing.assert_allclose(test["inputs"].ravel(), np.arange(120, 180) / 255, rtol=1e-6)
  assert test["group"].tolist() == [i % 4 for i in range(30, 45)]


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"inputs": None}, "needs an array `inputs`, got"),
    ({"labels": None}, "needs either `labels` or `targets`, got"),
    ({"targets": np.zeros(50)}, "needs either `labels` or `targets`, got"),
    ({"labels": np.zeros(49, int)}, "as many rows as each other"),
    ({"labels": np.zeros(50)}, "labels must be whole numbers"),
    ({"labels": np.arange(-1, 49)}, "labels must be at least 0, got -1"),
    ({"inputs": np.zeros(50)}, r"inputs must be \[N, ...\], got shape \(50,\)"),
    ({"inputs": np.full((50, 2), np.nan)}, "inputs must be finite"),
    ({"inputs": np.full((50, 2), "a")}, "inputs must be numbers"),
    ({"x": np.zeros(50)}, r"has \['x'\]: arrays must be named inputs"),
    ({"split": np.full(50, "dev")}, r"split must hold .*, got \['dev'\]"),
    ({"split": np.full(50, None)}, "own.npz cannot be read"),
  ],
)
def test_npz_files_that_cannot_be(tmp_path, change, message):
  arrays = {name: values for name, values in {**table(), **change}.items() if values is not None}
  with pytest.raises(ValueError, match=message) as error:
    data.load(saved(tmp_path, arrays))
  assert "\n" not in str(error.value)


def test_npz_of_tokens(tmp_path):
  tokens = np.arange(200).reshape(20, 10) % 7
  dataset = data.load(saved(tmp_path, {"inputs": tokens, "labels": (tokens + 1) % 7}))
  train = dataset.splits["train"]
  assert dataset.num_classes == 7 and dataset.of_tokens
  assert train["inputs"].dtype == train["labels"].dtype == np.int32
  assert train["inputs"].shape == train["labels"].shape == (16, 10)
  np.testing.assert_array_equal(train["labels"], (train["inputs"] + 1) % 7)


@pytest.mark.parametrize(
  ("inputs", "message"),
  [
    (np.zeros((20, 9), int), r"inputs must have the shape of labels \[N, T\]"),
    (np.zeros((20, 10)), r"inputs must be whole numbers \[N, T\], got float64"),
    (np.full((20, 10), -1), "inputs must be at least 0, got -1"),
  ],
)
def test_npz_of_tokens_that_cannot_be(tmp_path, inputs, message):
  with pytest.raises(ValueError, match=message):
    data.load(saved(tmp_path, {"inputs": inputs, "labels": np.zeros((20, 10), int)}))


def test_text_is_windows_of_bytes_and_the_bytes_that_follow(tmp_path):
  path = tmp_path / "alphabet.txt"
  path.write_bytes((np.arange(128 * 20 + 5) % 251).astype(np.uint8).tobytes())
  dataset = data.load(str(path))
  assert (dataset.name, dataset.num_classes, dataset.of_tokens) == ("alphabet", 256, True)
  shapes = [dataset.splits[split]["inputs"].shape for split in data.SPLITS]
  assert shapes == [(16, 128), (2, 128), (2, 128)]
  whole = joined([dataset.splits[split] for split in data.SPLITS])
  np.testing.assert_array_equal(whole["inputs"].ravel(), np.arange(128 * 20) % 251)
  np.testing.assert_array_equal(whole["labels"].ravel(), np.arange(1, 128 * 20 + 1) % 251)
  with pytest.raises(ValueError, match="imbalance needs one label an example: alphabet has one a"):
    trouble.imbalance(dataset, 10.0)


def test_a_short_text_says_how_long_it_must_be(tmp_path):
  path = tmp_path / "note.txt"
  path.write_text("short")
  with pytest.raises(ValueError, match=r"note\.txt must have more than 1280 bytes.*got 5"):
    data.load(str(path))


@pytest.mark.full
def test_a_transformer_learns_a_text(tmp_path):
  path = tmp_path / "abc.txt"
  path.write_text("abcdefgh" * 500)
  config = train.Config(
    dataset=str(path), model="transformer", optimizer="adam(3e-3)", epochs=8, batch_size=8
  )
  config = dataclasses.replace(config, progress="off")
  final = fit(train.prepare(config), tmp_path / "run", {})["final"]
  assert final["test/accuracy"] > 0.98 and final["test/nll"] < 0.5
  assert not (tmp_path / "run" / "predictions.npz").exists()


def test_bad_paths(tmp_path):
  for path in (tmp_path / "none.npz", tmp_path / "nothing"):
    with pytest.raises(ValueError, match="no file or folder"):
      data.load(str(path))
  (tmp_path / "text.npz").write_text("no archive")
  with pytest.raises(ValueError, match=r"text\.npz must be an \.npz file"):
    data.load(str(tmp_path / "text.npz"))


def save_pictures(folder, labels=("cat", "dog"), size=10, shape=(4, 6), mode="L"):
  for i, label in enumerate(labels):
    (folder / label).mkdir(parents=True)
    for j in range(size):
      Image.new("L", shape[::-1], 51 * i + j).convert(mode).save(folder / label / f"{j}.png")
  return folder


def test_a_folder_of_images(tmp_path):
  dataset = data.load(str(save_pictures(tmp_path / "pets")))
  assert (dataset.name, dataset.num_classes) == ("pets", 2)
  assert [data.size(dataset.splits[split]) for split in data.SPLITS] == [16, 2, 2]
  whole = joined(list(dataset.splits.values()))
  assert whole["inputs"].shape == (20, 4, 6, 1)
  expected = {(i, (51 * i + j) / 255) for i in range(2) for j in range(10)}
  found = zip(whole["labels"].tolist(), whole["inputs"].mean(axis=(1, 2, 3)), strict=True)
  assert {(i, round(float(x), 5)) for i, x in found} == {(i, round(x, 5)) for i, x in expected}


def test_a_folder_with_splits_and_colours(tmp_path):
  save_pictures(tmp_path / "train", mode="RGB")
  save_pictures(tmp_path / "test", size=3)
  dataset = data.load(str(tmp_path))
  assert [data.size(dataset.splits[split]) for split in data.SPLITS] == [18, 2, 6]
  assert dataset.splits["test"]["inputs"].shape == (6, 4, 6, 3)
  assert dataset.splits["test"]["labels"].tolist() == [0, 0, 0, 1, 1, 1]


def test_folders_that_cannot_be(tmp_path):
  def refused(message):
    with pytest.raises(ValueError, match=message):
      data.load(str(tmp_path))

  refused("needs a folder for each of at least two classes")
  save_pictures(tmp_path)
  Image.new("L", (9, 9)).save(tmp_path / "dog" / "large.png")
  refused(r"images must have one size: .* \(6, 4\), .*large\.png is \(9, 9\)")
  (tmp_path / "dog" / "large.png").write_bytes(b"no image")
  refused(r"large\.png is not an image that can be read")
  (tmp_path / "empty").mkdir()
  refused("empty has no images")


@pytest.mark.parametrize("route", ["iris", "two_moons", "npz", "folder", "tfds"])
def test_every_route_trains(tmp_path, monkeypatch, capsys, route):
  dataset = {
    "npz": lambda: saved(tmp_path, table()),
    "folder": lambda: str(save_pictures(tmp_path / "pets")),
    "tfds": lambda: prepared(tmp_path) and "tiny_pictures",
  }.get(route, lambda: route)()
  command = ["train", "--dataset", dataset, "--data_dir", str(tmp_path), "--batch_size", "8"]
  rest = ["--model", "mlp", "--optimizer", "sgd(0.1)", "--epochs", "1", "--progress", "off"]
  monkeypatch.setattr("sys.argv", [*command, *rest, "--out", str(tmp_path / "runs")])
  train.main()
  assert "written to" in capsys.readouterr().out
  (result,) = (tmp_path / "runs").glob("*/result.json")
  assert 0 <= json.loads(result.read_text())["final"]["test/accuracy"] <= 1
