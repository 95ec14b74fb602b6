"""TFDS builders of the data sets that come with scikit-learn. Importing this imports TFDS."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

Arrays = dict[str, np.ndarray]


class _SklearnBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """A builder whose splits fit in memory; `index` is the position within the split."""

  VERSION = tfds.core.Version("1.0.0")

  def _info(self) -> tfds.core.DatasetInfo:
    features = {**self._columns(), "index": np.int32}
    return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

  def _columns(self) -> dict[str, Any]:
    raise NotImplementedError

  def _splits(self) -> dict[str, Arrays]:
    raise NotImplementedError

  def _split_generators(self, dl_manager):
    del dl_manager
    return {name: self._generate_examples(arrays) for name, arrays in self._splits().items()}

  def _generate_examples(self, arrays: Arrays) -> Iterator[tuple[int, dict[str, Any]]]:
    columns, rows = list(arrays), zip(*arrays.values(), strict=True)
    for index, row in enumerate(rows):
      yield index, {**dict(zip(columns, row, strict=True)), "index": index}


class Digits(_SklearnBuilder):
  """Handwritten digits, 8 x 8, in [0, 1]; the group is the label's parity."""

  name = "digits"

  def _columns(self) -> dict[str, Any]:
    return {
      "inputs": tfds.features.Tensor(shape=(8, 8, 1), dtype=np.float32),
      "labels": tfds.features.ClassLabel(num_classes=10),
      "group": tfds.features.ClassLabel(num_classes=2),
    }

  def _splits(self) -> dict[str, Arrays]:
    from sklearn import datasets

    digits: Any = datasets.load_digits()
    arrays = {
      "inputs": (digits.images[..., None] / 16).astype(np.float32),
      "labels": digits.target,
      "group": digits.target % 2,
    }
    return _split(arrays, validation=297, test=300, stratify="labels")


class Diabetes(_SklearnBuilder):
  """Progression of diabetes from ten measurements, standardised; the group is the sex."""

  name = "diabetes"

  def _columns(self) -> dict[str, Any]:
    return {
      "inputs": tfds.features.Tensor(shape=(10,), dtype=np.float32),
      "targets": tfds.features.Tensor(shape=(1,), dtype=np.float32),
      "group": tfds.features.ClassLabel(num_classes=2),
    }

  def _splits(self) -> dict[str, Arrays]:
    from sklearn import datasets

    diabetes: Any = datasets.load_diabetes(scaled=False)
    sex = diabetes.data[:, diabetes.feature_names.index("sex")]
    arrays = {
      "inputs": diabetes.data,
      "targets": diabetes.target[:, None],
      "group": (sex > sex.min()).astype(np.int32),
    }
    splits = _split(arrays, validation=71, test=71)
    return _standardised(splits, ["inputs", "targets"])


class _Table(_SklearnBuilder):
  """Rows of measurements, standardised by the training split; a fifth each to hold out."""

  num_inputs: int
  num_outputs: int

  def _columns(self) -> dict[str, Any]:
    return {"inputs": tfds.features.Tensor(shape=(self.num_inputs,), dtype=np.float32)}

  def _load(self) -> tuple[np.ndarray, np.ndarray]:
    from sklearn import datasets

    return getattr(datasets, f"load_{self.name}")(return_X_y=True)


class _Classes(_Table):
  """A table with a class for each row; every split has the same share of each class."""

  def _columns(self) -> dict[str, Any]:
    labels = tfds.features.ClassLabel(num_classes=self.num_outputs)
    return {**super()._columns(), "labels": labels}

  def _splits(self) -> dict[str, Arrays]:
    inputs, labels = self._load()
    held_out = len(labels) // 5
    arrays = {"inputs": inputs, "labels": labels}
    splits = _split(arrays, validation=held_out, test=held_out, stratify="labels")
    return _standardised(splits, ["inputs"])


class Iris(_Classes):
  """Three species of iris from four measurements of the flower."""

  name, num_inputs, num_outputs = "iris", 4, 3


class Wine(_Classes):
  """Three growers of wine from thirteen chemical measurements."""

  name, num_inputs, num_outputs = "wine", 13, 3


class BreastCancer(_Classes):
  """Malignant (0) or benign (1) from thirty measurements of cell nuclei."""

  name, num_inputs, num_outputs = "breast_cancer", 30, 2


class Linnerud(_Table):
  """Weight, waist and pulse from three exercises of twenty men."""

  name, num_inputs, num_outputs = "linnerud", 3, 3

  def _columns(self) -> dict[str, Any]:
    targets = tfds.features.Tensor(shape=(self.num_outputs,), dtype=np.float32)
    return {**super()._columns(), "targets": targets}

  def _splits(self) -> dict[str, Arrays]:
    inputs, targets = self._load()
    held_out = len(targets) // 5
    splits = _split({"inputs": inputs, "targets": targets}, validation=held_out, test=held_out)
    return _standardised(splits, ["inputs", "targets"])


BUILDERS = {
  builder.name: builder for builder in (BreastCancer, Diabetes, Digits, Iris, Linnerud, Wine)
}


def _split(
  arrays: Arrays, *, validation: int, test: int, stratify: str | None = None
) -> dict[str, Arrays]:
  from sklearn import model_selection

  def part(rows, size):
    labels = arrays[stratify][rows] if stratify else None
    return model_selection.train_test_split(rows, test_size=size, random_state=0, stratify=labels)

  rest, test_rows = part(np.arange(len(arrays["inputs"])), test)
  train_rows, validation_rows = part(rest, validation)
  rows = {"train": train_rows, "validation": validation_rows, "test": test_rows}
  return {
    name: {column: values[chosen] for column, values in arrays.items()}
    for name, chosen in rows.items()
  }


def _standardised(splits: dict[str, Arrays], columns: list[str]) -> dict[str, Arrays]:
  """The splits with mean 0 and deviation 1 on the training split."""
  train = splits["train"]
  moments = {name: (train[name].mean(axis=0), train[name].std(axis=0)) for name in columns}

  def standardise(name, values):
    if name not in moments:
      return values
    mean, deviation = moments[name]
    return ((values - mean) / deviation).astype(np.float32)

  return {
    split: {name: standardise(name, values) for name, values in arrays.items()}
    for split, arrays in splits.items()
  }
