"""A user's own data: NPZ files, text, and folders of images with one folder a class."""

import pathlib
import zipfile
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, TypeAlias

import numpy as np

from . import data
from ._rows import shuffled_by_class

Arrays: TypeAlias = dict[str, np.ndarray]

_COLUMNS = ("inputs", "labels", "targets", "group", "split")
_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
_WINDOW = 128
_GRAY, _COLOURED = {"1", "L", "LA"}, {"P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"}


def is_path(name: str) -> bool:
  """Whether `name` means files: its ending, how it starts, or a folder that exists say so."""
  path = pathlib.Path(name).expanduser()
  starts = name.startswith((".", "/", "~"))
  return path.suffix in (".npz", ".txt") or starts or (len(path.parts) > 1 and path.exists())


def load(name: str) -> data.Dataset:
  """The data set in an NPZ or text file or a folder of images.

  Raises:
    ValueError: nothing is there, or it is not as described in `data.load`.
  """
  path = pathlib.Path(name).expanduser()
  if not path.exists():
    raise ValueError(f"no file or folder {name}")
  if path.suffix == ".txt" and path.is_file():
    return _read_text(path)
  splits = _read_folder(path) if path.is_dir() else _read_npz(path)
  splits = _complete(splits)
  for split in data.SPLITS:
    if not data.size(splits[split]):
      raise ValueError(f"{name}: the split {split!r} has no examples")
  return data.Dataset(
    name=path.stem,
    splits={split: splits[split] for split in data.SPLITS},
    num_classes=_num_classes(splits),
    num_groups=_count(splits, "group"),
  )


def _read_text(path: pathlib.Path) -> data.Dataset:
  """Its bytes in windows, each next to the bytes that follow."""
  text = np.fromfile(path, np.uint8).astype(np.int32)
  windows = (len(text) - 1) // _WINDOW
  held_out = windows // 10
  if not held_out:
    need = f"more than {10 * _WINDOW} bytes, ten windows of {_WINDOW}"
    raise ValueError(f"{path} must have {need}, got {len(text)}")
  inputs, labels = (
    text[start : start + windows * _WINDOW].reshape(windows, _WINDOW) for start in (0, 1)
  )
  ends = windows - 2 * held_out, windows - held_out
  parts = zip(data.SPLITS, np.split(inputs, ends), np.split(labels, ends), strict=True)
  splits = {name: {"inputs": x, "labels": y} for name, x, y in parts}
  return data.Dataset(path.stem, splits, num_classes=256, num_groups=None)


def _num_classes(splits: Mapping[str, Arrays]) -> int | None:
  """The number of classes; inputs that are tokens are counted too."""
  labels = splits["train"].get("labels")
  if labels is None or labels.ndim == 1:
    return _count(splits, "labels")
  return max(_count(splits, name) or 0 for name in ("inputs", "labels"))


def _count(splits: Mapping[str, Arrays], column: str) -> int | None:
  if column not in splits["train"]:
    return None
  return int(max(split[column].max() for split in splits.values())) + 1


def _read_npz(path: pathlib.Path) -> dict[str, Arrays]:
  if not zipfile.is_zipfile(path):
    raise ValueError(
      f"{path} must be an .npz file, as numpy.savez writes it, a .txt file or a folder"
    )
  try:
    with np.load(path, allow_pickle=False) as file:
      arrays = {name: file[name] for name in file.files}
  except (OSError, ValueError, zipfile.BadZipFile) as error:
    raise ValueError(f"{path} cannot be read: {error}") from error
  _check_names(path, arrays)
  of_tokens = arrays["labels"].ndim == 2 if "labels" in arrays else False
  checks = {**_CHECKS, **_TOKEN_CHECKS} if of_tokens else _CHECKS
  columns = {name: checks[name](path, values) for name, values in arrays.items()}
  if of_tokens and columns["inputs"].shape != columns["labels"].shape:
    shapes = f"{columns['inputs'].shape} and {columns['labels'].shape}"
    raise ValueError(f"{path}: inputs must have the shape of labels [N, T], got {shapes}")
  split = columns.pop("split", np.full(len(columns["inputs"]), "train"))
  return {
    name: {column: values[split == name] for column, values in columns.items()}
    for name in np.unique(split).tolist()
  }


def _check_names(path: pathlib.Path, arrays: Arrays) -> None:
  unknown = sorted(set(arrays) - set(_COLUMNS))
  if unknown:
    raise ValueError(f"{path} has {unknown}: arrays must be named {', '.join(_COLUMNS)}")
  if "inputs" not in arrays:
    raise ValueError(f"{path} needs an array `inputs`, got {sorted(arrays)}")
  if ("labels" in arrays) == ("targets" in arrays):
    raise ValueError(f"{path} needs either `labels` or `targets`, got {sorted(arrays)}")
  lengths = {name: values.shape[0] if values.ndim else 0 for name, values in arrays.items()}
  if len(set(lengths.values())) > 1:
    raise ValueError(f"{path}: arrays must have as many rows as each other, got {lengths}")


def _inputs(path: pathlib.Path, values: np.ndarray) -> np.ndarray:
  if values.ndim < 2:
    raise ValueError(f"{path}: inputs must be [N, ...], got shape {values.shape}")
  scale = 255 if values.dtype == np.uint8 and values.ndim == 4 else 1
  return _numbers(path, "inputs", values) / np.float32(scale)


def _targets(path: pathlib.Path, values: np.ndarray) -> np.ndarray:
  if values.ndim not in (1, 2):
    raise ValueError(f"{path}: targets must be [N] or [N, C], got shape {values.shape}")
  return _numbers(path, "targets", values).reshape(len(values), -1)


def _numbers(path: pathlib.Path, name: str, values: np.ndarray) -> np.ndarray:
  if values.dtype.kind not in "biuf":
    raise ValueError(f"{path}: {name} must be numbers, got {values.dtype}")
  if not np.isfinite(values).all():
    raise ValueError(f"{path}: {name} must be finite, but some are not")
  return values.astype(np.float32)


def _classes(name: str, shape: str = "[N]") -> Callable[[pathlib.Path, np.ndarray], np.ndarray]:
  def check(path, values):
    if values.ndim != 1 + shape.count(",") or values.dtype.kind not in "biu":
      raise ValueError(
        f"{path}: {name} must be whole numbers {shape}, got {values.dtype} of shape {values.shape}"
      )
    if values.size and values.min() < 0:
      raise ValueError(f"{path}: {name} must be at least 0, got {values.min()}")
    return values.astype(np.int32)

  return check


def _split_names(path: pathlib.Path, values: np.ndarray) -> np.ndarray:
  found = set(np.unique(values).tolist())
  if values.ndim != 1 or not found <= set(data.SPLITS) or "train" not in found:
    raise ValueError(
      f"{path}: split must hold {', '.join(data.SPLITS)}, and train at least, "
      f"got {sorted(found, key=str)[:5]}"
    )
  return values


_CHECKS: dict[str, Callable[[pathlib.Path, np.ndarray], np.ndarray]] = {
  "inputs": _inputs,
  "labels": _classes("labels"),
  "targets": _targets,
  "group": _classes("group"),
  "split": _split_names,
}


_TOKEN_CHECKS = {name: _classes(name, "[N, T]") for name in ("inputs", "labels")}


def _read_folder(path: pathlib.Path) -> dict[str, Arrays]:
  """`path/<class>/*.png`, or `path/<split>/<class>/*.png` if there is `path/train`."""
  names = [split for split in data.SPLITS if (path / split).is_dir()]
  roots = {split: path / split for split in names} if "train" in names else {"train": path}
  classes = sorted(folder.name for folder in _folders(roots["train"]))
  if len(classes) < 2:
    raise ValueError(f"{roots['train']} needs a folder for each of at least two classes")
  files = {split: list(_labelled_files(root, classes)) for split, root in roots.items()}
  images = _decode([file for found in files.values() for file, _ in found])
  splits = {}
  for split, found in files.items():
    labels = np.array([label for _, label in found], np.int32)
    splits[split] = {"inputs": np.stack([images[file] for file, _ in found]), "labels": labels}
  return splits


def _folders(path: pathlib.Path) -> list[pathlib.Path]:
  return [p for p in sorted(path.iterdir()) if p.is_dir() and not p.name.startswith(".")]


def _labelled_files(
  root: pathlib.Path, classes: Collection[str]
) -> Iterator[tuple[pathlib.Path, int]]:
  numbers = {name: i for i, name in enumerate(classes)}
  if not _folders(root):
    raise ValueError(f"{root} needs a folder for each class")
  for folder in _folders(root):
    if folder.name not in numbers:
      raise ValueError(f"{folder} is a class that the training split lacks")
    files = [file for file in sorted(folder.iterdir()) if file.suffix.lower() in _SUFFIXES]
    if not files:
      raise ValueError(f"{folder} has no images ({', '.join(_SUFFIXES)})")
    yield from ((file, numbers[folder.name]) for file in files)


def _decode(files: list[pathlib.Path]) -> dict[pathlib.Path, np.ndarray]:
  """The images `[H, W, C]`, float32 in [0, 1]; gray (C = 1) if all of them are."""
  opened = {file: _open(file) for file in files}
  mode = "L" if all(image.mode in _GRAY for image in opened.values()) else "RGB"
  images: dict[pathlib.Path, np.ndarray] = {}
  for file, image in opened.items():
    if image.size != opened[files[0]].size:
      wanted, found = opened[files[0]].size, image.size
      raise ValueError(f"images must have one size: {files[0]} is {wanted}, {file} is {found}")
    pixels = np.asarray(image.convert(mode), np.float32) / np.float32(255)
    images[file] = pixels.reshape(*pixels.shape[:2], -1)
  return images


def _open(file: pathlib.Path) -> Any:
  from PIL import Image

  try:
    with Image.open(file) as image:
      image.load()
  except OSError as error:
    raise ValueError(f"{file} is not an image that can be read") from error
  if image.mode not in _GRAY | _COLOURED:
    raise ValueError(f"{file} must have 8 bits a channel, got mode {image.mode}")
  return image


def _complete(splits: dict[str, Arrays]) -> dict[str, Arrays]:
  """Cuts missing splits from the training split, a tenth each, with its share of each class."""
  missing = [split for split in data.SPLITS if split not in splits]
  train = splits["train"]
  labels = train.get("labels")
  by_class = labels if labels is None or labels.ndim == 1 else None
  rows = shuffled_by_class(by_class, data.size(train), np.random.default_rng(0))
  held_out = -(-len(rows) // 10)
  for split in missing:
    chosen, rows = np.sort(rows[:held_out]), rows[held_out:]
    splits[split] = {name: values[chosen] for name, values in train.items()}
  rows = np.sort(rows)
  splits["train"] = {name: values[rows] for name, values in train.items()}
  return splits
