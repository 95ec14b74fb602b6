"""Data sets are what they say, and batches are a function of seed and step."""

import itertools
import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import datasets

from jaxrl import _builders, data

SIZES = {
  "breast_cancer": (343, 113, 113),
  "diabetes": (300, 71, 71),
  "digits": (1200, 297, 300),
  "iris": (90, 30, 30),
  "linnerud": (12, 4, 4),
  "wine": (108, 35, 35),
}
CLASSES = {"breast_cancer": 2, "digits": 10, "iris": 3, "wine": 3}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
  return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def digits(data_dir):
  return data.load("digits", data_dir)


@pytest.fixture(scope="module")
def diabetes(data_dir):
  return data.load("diabetes", data_dir)


def start(script, *arguments):
  command = [sys.executable, "-W", "error", "-c", textwrap.dedent(script), *map(str, arguments)]
  pipe = subprocess.PIPE
  return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env={**os.environ})


@pytest.mark.parametrize("name", data.SCIKIT_LEARN)
def test_split_sizes(name, data_dir):
  dataset = data.load(name, data_dir)
  assert tuple(data.size(dataset.splits[split]) for split in data.SPLITS) == SIZES[name]
  assert dataset.num_examples == SIZES[name][0]
  assert dataset.num_classes == CLASSES.get(name)
  assert dataset.num_groups == (2 if name in ("digits", "diabetes") else None)


def test_digits_are_scikit_learns_each_exactly_once(digits):
  original = datasets.load_digits()
  expected = sorted(
    (label, image.tobytes())
    for label, image in zip(original.target, np.float32(original.images / 16), strict=True)
  )
  found = sorted(
    (label, image.tobytes())
    for split in digits.splits.values()
    for label, image in zip(split["labels"], split["inputs"], strict=True)
  )
  assert found == expected
  train = digits.splits["train"]
  assert train["inputs"].shape == (1200, 8, 8, 1)
  assert (train["inputs"].min(), train["inputs"].max()) == (0, 1)
  assert {name: column.dtype for name, column in train.items()} == {
    "inputs": np.float32,
    "labels": np.int32,
    "group": np.int32,
  }
  assert (train["group"] == train["labels"] % 2).all()


def test_digits_are_stratified(digits):
  share = np.bincount(datasets.load_digits().target) / 1797
  for split in digits.splits.values():
    counts = np.bincount(split["labels"], minlength=10)
    assert np.abs(counts - share * len(split["labels"])).max() < 1.5


def test_digits_are_not_split_by_writer(digits):
  """The last 297 rows of the original are other writers'; here they are spread."""
  images = np.float32(datasets.load_digits().images / 16)
  last = {image.tobytes() for image in images[-297:]}
  share = np.mean([image.tobytes() in last for image in digits.splits["test"]["inputs"]])
  assert 0.1 < share < 0.23


def test_diabetes_is_standardised_by_its_training_split(diabetes):
  raw = datasets.load_diabetes(scaled=False)
  train = diabetes.splits["train"]
  for column in (train["inputs"], train["targets"]):
    np.testing.assert_allclose(column.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(column.std(axis=0), 1, rtol=1e-4)
  every = {
    name: np.concatenate([split[name] for split in diabetes.splits.values()])
    for name in ("inputs", "targets", "group")
  }
  assert every["inputs"].shape == (442, 10) and every["targets"].shape == (442, 1)
  # Standardising is affine: ranks and correlations are those of the original rows.
  both = np.column_stack([every["inputs"], every["targets"]])
  np.testing.assert_allclose(
    np.corrcoef(both, rowvar=False),
    np.corrcoef(np.column_stack([raw.data, raw.target]), rowvar=False),
    atol=1e-5,
  )
  assert every["group"].sum() == (raw.data[:, 1] == 2).sum()


@pytest.mark.parametrize("name", ["breast_cancer", "iris", "linnerud", "wine"])
def test_tables_are_scikit_learns_up_to_scale(name, data_dir):
  original, outputs = getattr(datasets, f"load_{name}")(return_X_y=True)
  splits = data.load(name, data_dir).splits
  column = "labels" if name in CLASSES else "targets"
  inputs, found = (
    np.concatenate([splits[split][c] for split in data.SPLITS]) for c in ("inputs", column)
  )
  np.testing.assert_allclose(splits["train"]["inputs"].mean(axis=0), 0, atol=1e-5)
  np.testing.assert_allclose(splits["train"]["inputs"].std(axis=0), 1, rtol=1e-4)
  np.testing.assert_allclose(
    np.corrcoef(np.column_stack([inputs, found]), rowvar=False),
    np.corrcoef(np.column_stack([original, outputs]), rowvar=False),
    atol=1e-5,
  )
  if name in CLASSES:
    assert np.bincount(found).tolist() == np.bincount(outputs).tolist()


def test_a_second_load_reads_the_same(digits, data_dir):
  again = data.load("digits", data_dir)
  for split in data.SPLITS:
    for name, column in digits.splits[split].items():
      np.testing.assert_array_equal(again.splits[split][name], column)


@pytest.mark.parametrize(
  ("name", "hint"),
  [("digit", "did you mean 'digits'?"), ("grosbeaks", "there are breast_cancer, diabetes, digits")],
)
def test_unknown_names(name, hint):
  with pytest.raises(ValueError, match="no data set") as error:
    data.load(name)
  assert hint in str(error.value) and "\n" not in str(error.value)


LOAD = """
  import sys
  from jaxrl import data
  print(data.load("digits", sys.argv[1]).splits["train"]["labels"].sum())
"""


def test_two_processes_at_once_write_one_data_set(digits, tmp_path):
  processes = [start(LOAD, tmp_path) for _ in range(2)]
  outputs = [process.communicate() for process in processes]
  expected = f"{digits.splits['train']['labels'].sum()}\n"
  assert outputs == [(expected, "")] * 2
  assert [path.name for path in (tmp_path / "digits").iterdir()] == ["1.0.0"]


def test_kill_9_while_writing_leaves_nothing_half_done(tmp_path):
  killed = start(
    """
    import itertools, os, sys
    from jaxrl import _builders, data
    whole = _builders.Digits._generate_examples
    def torn(self, arrays):
      yield from itertools.islice(whole(self, arrays), 200)
      os.kill(os.getpid(), 9)
    _builders.Digits._generate_examples = torn
    data.load("digits", sys.argv[1])
    """,
    tmp_path,
  )
  killed.communicate()
  assert killed.returncode == -9
  assert [path.name[:10] for path in (tmp_path / "digits").iterdir()] == ["incomplete"]
  assert data.load("digits", tmp_path).num_examples == 1200
  assert [path.name for path in (tmp_path / "digits").iterdir()] == ["1.0.0"]


def test_damaged_files_are_named(tmp_path, digits, data_dir):
  data.load("diabetes", tmp_path)
  (file,) = tmp_path.glob("diabetes/1.0.0/*train*")
  file.write_bytes(file.read_bytes()[:50_000])
  with pytest.raises(ValueError, match=r"diabetes/1\.0\.0 is damaged: delete it"):
    data.load("diabetes", tmp_path)


def test_importing_is_light():
  script = """
    import sys
    from jaxrl import data
    print([name for name in ("tensorflow_datasets", "sklearn", "jax") if name in sys.modules])
  """
  assert start(script).communicate() == ("[]\n", "")


def split_of(size):
  return {"inputs": np.arange(size, dtype=np.float32), "labels": np.arange(size) % 3}


def taken(split, batch_size, count, **options):
  return list(itertools.islice(data.batches(split, batch_size, **options), count))


def test_batches_show_their_rows(digits):
  train = digits.splits["train"]
  for batch in taken(train, 64, 3, seed=1):
    assert batch["mask"].tolist() == [1] * 64 and batch["mask"].dtype == np.float32
    assert batch["index"].dtype == np.int32
    for name, column in train.items():
      np.testing.assert_array_equal(batch[name], column[batch["index"]])


def test_an_epoch_shows_each_example_at_most_once_and_is_reshuffled():
  batches = taken(split_of(23), 5, 8, seed=3)
  epochs = [
    np.concatenate([batch["index"] for batch in half]) for half in (batches[:4], batches[4:])
  ]
  for epoch in epochs:
    assert len(set(epoch.tolist())) == 20
  assert (epochs[0] != epochs[1]).any()


def test_every_order_is_as_likely_as_another():
  orders = [tuple(taken(split_of(3), 3, 1, seed=seed)[0]["index"]) for seed in range(1200)]
  counts = [orders.count(order) for order in itertools.permutations(range(3))]
  assert min(counts) > 150 and max(counts) < 250


@given(
  size=st.integers(1, 20),
  batch_size=st.integers(1, 20),
  seed=st.integers(0, 2**31),
  start_step=st.integers(0, 50),
)
def test_the_step_alone_is_the_position(size, batch_size, seed, start_step):
  batch_size = min(batch_size, size)
  whole = taken(split_of(size), batch_size, start_step + 3, seed=seed)
  resumed = taken(split_of(size), batch_size, 3, seed=seed, start_step=start_step)
  for a, b in zip(whole[start_step:], resumed, strict=True):
    assert a.keys() == b.keys()
    assert all((a[name] == b[name]).all() for name in a)


def test_seeds_differ():
  a, b = (taken(split_of(50), 50, 1, seed=seed)[0]["index"] for seed in (0, 1))
  assert (a != b).any()


def test_evaluation_is_in_order_and_padded():
  batches = list(data.eval_batches(split_of(7), 3))
  assert [batch["mask"].tolist() for batch in batches] == [[1, 1, 1], [1, 1, 1], [1, 0, 0]]
  shown = [x for batch in batches for x in batch["inputs"][batch["mask"] > 0].tolist()]
  assert shown == list(range(7))
  assert {batch["inputs"].shape for batch in batches} == {(3,)}
  assert batches[0].keys() == taken(split_of(7), 3, 1, seed=0)[0].keys()


def test_sources_give_the_same_batches_as_arrays(data_dir, digits):
  builder = _builders.Digits(data_dir=data_dir, file_format="array_record")
  source = builder.as_data_source(split="validation")
  records = source.__getitems__(range(len(source)))
  stored = {name: np.stack([record[name] for record in records]) for name in records[0]}
  assert sorted(stored["index"].tolist()) == list(range(297))
  arrays = {name: stored[name] for name in ("inputs", "labels", "group")}
  for a, b in zip(data.eval_batches(source, 100), data.eval_batches(arrays, 100), strict=True):
    assert a.keys() == b.keys()
    assert all((a[name] == b[name]).all() for name in a)
  a, b = (taken(split, 100, 1, seed=0)[0] for split in (source, arrays))
  assert all((a[name] == b[name]).all() for name in a)
  assert a["labels"].dtype == np.int32


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (lambda s: data.batches(s, 8, seed=0), "batch_size must be at most 7, the split, got 8"),
    (lambda s: data.batches(s, 0, seed=0), "batch_size must be a whole number of at least 1"),
    (lambda s: data.batches(s, 2.0, seed=0), "batch_size must be a whole number"),
    (lambda s: data.batches(s, 2, seed=-1), "seed must be a whole number of at least 0"),
    (lambda s: data.batches(s, 2, seed=0, start_step=-1), "start_step must be"),
    (lambda s: data.eval_batches(s, 0), "batch_size must be a whole number"),
    (lambda s: data.steps_per_epoch(s, 8), "batch_size must be at most 7"),
  ],
)
def test_bad_arguments_fail_at_once(call, message):
  with pytest.raises(ValueError, match=message):
    call(split_of(7))
