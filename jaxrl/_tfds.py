"""Any TFDS data set as a Dataset of random-access sources. Importing this imports TFDS."""

import contextlib
import difflib
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core import naming, read_only_builder, registered

from . import data

_IMAGES = {np.dtype(np.uint8): np.float32(255), np.dtype(np.uint16): np.float32(65535)}


class Records:
  """Chosen rows of a TFDS source as records of `inputs` and `labels` or `targets`."""

  def __init__(self, source: Any, rows: np.ndarray, convert: Callable[[Any], dict[str, Any]]):
    self._source, self._rows, self._convert = source, rows, convert

  def __len__(self) -> int:
    return len(self._rows)

  def __getitems__(self, rows: Sequence[int], /) -> list[dict[str, Any]]:
    """The records at positions of this split."""
    records = self._source.__getitems__(self._rows[np.asarray(rows)].tolist())
    return [self._convert(record) for record in records]


def load(name: str, folder: pathlib.Path, download: bool) -> data.Dataset:
  """The TFDS data set `name`; its images become float32 in [0, 1].

  `train` is the split of that name. `test` is `test`, else `validation`; `validation` is
  what is left of that name. What is still missing is cut from `train`, a tenth each, at
  rows that never change.

  Raises:
    ValueError: unknown, not prepared, or of a kind that the batches cannot hold.
  """
  builder = _builder(name, folder)
  if not builder.data_path.exists():
    if not download:
      raise ValueError(f"{name} is not prepared in {folder}: pass --download to download it")
    builder = _downloaded(name, folder)
  convert, num_classes = _conversion(name, builder.info)
  sources = _sources(name, builder)
  splits = {split: Records(*part, convert) for split, part in _cut(sources).items()}
  return data.Dataset(name=name, splits=splits, num_classes=num_classes, num_groups=None)


def _builder(name: str, folder: pathlib.Path) -> Any:
  """What reads the files, if they are there: the code that made them may need TensorFlow."""
  try:
    bare, options = naming.parse_builder_name_kwargs(name, data_dir=folder)
    if bare.namespace:
      raise ValueError("names with a colon lead to other places")
    with contextlib.suppress(registered.DatasetNotFoundError):
      return read_only_builder.builder_from_files(str(bare), **options)
    return tfds.builder(name, data_dir=folder, file_format="array_record")
  except registered.DatasetNotFoundError as error:
    known = [*data.NAMES, *registered.list_imported_builders()]
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    here = f"the files here are ./{name}; " if pathlib.Path(name).exists() else ""
    raise ValueError(
      f"no data set {name!r}: {hint}{here}there are {', '.join(data.NAMES)}, those of TFDS, "
      f"and paths to .npz files and folders"
    ) from error
  except Exception as error:  # TFDS raises what its many builders and their imports raise.
    raise ValueError(f"TFDS cannot make {name}: {_first_line(error)}") from error


def _downloaded(name: str, folder: pathlib.Path) -> Any:
  try:
    data.prepare(lambda: _builder(name, folder), folder)
  except Exception as error:  # As above, and whatever the network does.
    raise ValueError(f"TFDS cannot prepare {name}: {_first_line(error)}") from error
  return _builder(name, folder)


def _first_line(error: Exception) -> str:
  lines = [line.strip() for line in str(error).splitlines() if line.strip(" *\t")]
  return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _sources(name: str, builder: Any) -> dict[str, Any]:
  if "train" not in builder.info.splits:
    raise ValueError(f"{name} has no split 'train', but {', '.join(builder.info.splits)}")
  wanted = [split for split in data.SPLITS if split in builder.info.splits]
  try:
    return {split: builder.as_data_source(split=split) for split in wanted}
  except NotImplementedError as error:
    raise ValueError(
      f"{name} in {builder.data_path} is not in the array_record format, which can be read "
      f"at random without TensorFlow: convert it, or name another data_dir"
    ) from error


def _cut(sources: Mapping[str, Any]) -> dict[str, tuple[Any, np.ndarray]]:
  """Each split as a source and its rows; missing splits are cut from the training rows."""
  parts = {split: (source, np.arange(len(source))) for split, source in sources.items()}
  if "test" not in parts and "validation" in parts:
    parts["test"] = parts.pop("validation")
  source, rows = parts["train"]
  missing = [split for split in data.SPLITS if split not in parts]
  order, held_out = np.random.default_rng(0).permutation(rows), -(-len(rows) // 10)
  for split in missing:
    chosen, order = order[:held_out], order[held_out:]
    parts[split] = source, np.sort(chosen)
  parts["train"] = source, np.sort(order)
  return parts


def _conversion(name: str, info: Any) -> tuple[Callable[[Any], dict[str, Any]], int | None]:
  """What makes our columns of a record, and the number of classes."""
  keys = info.supervised_keys
  if not (isinstance(keys, tuple) and len(keys) == 2 and all(isinstance(k, str) for k in keys)):
    raise ValueError(f"{name} doesn't say which features are input and output: {_names(info)}")
  inputs, output = (info.features[key] for key in keys)
  scale = _scale(name, keys[0], inputs)
  labelled = isinstance(output, tfds.features.ClassLabel)
  if not labelled:
    _scale(name, keys[1], output)

  def convert(record):
    columns = {"inputs": np.asarray(record[keys[0]], np.float32) / scale}
    if labelled:
      return {**columns, "labels": np.int32(record[keys[1]])}
    return {**columns, "targets": np.asarray(record[keys[1]], np.float32).reshape(-1)}

  return convert, output.num_classes if labelled else None


def _scale(name: str, key: str, feature: Any) -> np.float32:
  """What a feature is divided by; ValueError unless it is an array of one fixed shape."""
  kind, shape, dtype = type(feature), feature.shape, feature.np_dtype
  numeric = issubclass(kind, tfds.features.Tensor | tfds.features.Image)
  if not numeric or not np.issubdtype(dtype, np.number):
    raise ValueError(f"{name}: {key!r} must be numbers or images, got {kind.__name__}")
  if None in shape:
    raise ValueError(f"{name}: {key!r} must have one shape, got {shape}")
  is_image = issubclass(kind, tfds.features.Image)
  return _IMAGES.get(np.dtype(dtype), np.float32(1)) if is_image else np.float32(1)


def _names(info: Any) -> str:
  return f"supervised_keys is {info.supervised_keys!r}, the features {', '.join(info.features)}"
