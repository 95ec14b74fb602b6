"""Data sets and their batches: in-memory arrays or TFDS random-access sources.

Every batch is a dict of NumPy arrays: `inputs`, `labels` or `targets`, `group`, and two
columns that are made here: `index [B]`, the example's position within its split, and
`mask [B]`, 1 for an example and 0 for padding. TFDS and scikit-learn are imported by
`load` alone. `jaxrl.synthetic` makes data sets, `jaxrl.trouble` makes them harder.
"""

import contextlib
import dataclasses
import fcntl
import functools
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np

from . import check

SCIKIT_LEARN = ("breast_cancer", "diabetes", "digits", "iris", "linnerud", "wine")
SYNTHETIC = (
  "heterogeneous_quadratics",
  "modular_arithmetic",
  "sparse_regression",
  "spirals",
  "two_moons",
)
NAMES = SCIKIT_LEARN + SYNTHETIC
SPLITS = ("train", "validation", "test")


class Source(Protocol):
  """A random-access data source, as `builder.as_data_source` gives it."""

  def __len__(self) -> int: ...
  def __getitems__(self, rows: Sequence[int], /) -> Sequence[Mapping[str, Any]]: ...


Arrays: TypeAlias = Mapping[str, np.ndarray]
Split: TypeAlias = Arrays | Source
Batch: TypeAlias = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Dataset:
  """A data set's splits (`train`, `validation`, `test`) and what losses must know of it.

  `num_classes` is None without `labels`, `num_groups` None without `group`.
  """

  name: str
  splits: Mapping[str, Split]
  num_classes: int | None
  num_groups: int | None

  @property
  def of_tokens(self) -> bool:
    """Whether every token has a label, `labels [N, T]`."""
    train = self.splits["train"]
    return isinstance(train, Mapping) and "labels" in train and train["labels"].ndim == 2

  @property
  def num_examples(self) -> int:
    """The number of training examples."""
    return size(self.splits["train"])


def load(
  name: str, data_dir: str | os.PathLike[str] | None = None, *, download: bool = False
) -> Dataset:
  """A data set by name or path. The splits are part of it: they don't depend on a seed.

  - One of `SCIKIT_LEARN`, written under `data_dir` at its first use. `digits`: 1200/297/300
    images `[8, 8, 1]`, ten classes, the group is the label's parity. `diabetes`: 300/71/71
    rows `[10]` with targets `[1]`; the group is the sex. The others have no groups and hold
    out a fifth for validation and a fifth for test. All but `digits` are standardised by
    the training split. Processes that start at once wait for the one that writes.
  - One of `SYNTHETIC`: that function of `jaxrl.synthetic` with its defaults.
  - An `.npz` file with arrays `inputs [N, ...]`, `labels [N]` or `targets [N, C]`, and
    perhaps `group [N]` and `split [N]`, the name of each row's split. Images `[N, H, W, C]`
    of bytes become float32 in [0, 1]. With `labels [N, T]`, one for each of the tokens
    `inputs [N, T]`, both are whole numbers.
  - A `.txt` file: windows of 128 bytes as tokens, 256 classes, the label of each the byte that
    follows. The first 80 % are for training, 10 % each for validation and test.
  - A folder of images of one size, `path/<class>/*.png`, or `path/<split>/<class>/*.png`.
    A relative path starts with `./` unless it has several parts.
  - Any name of TFDS, `mnist` or `cifar10_corrupted/fog_1`, prepared in `data_dir` in the
    array_record format and read at random from there. TFDS says which features are
    `inputs` and `labels` or `targets`; images become float32 in [0, 1].

  Where splits are missing, a tenth each is cut from `train`, always the same rows. A TFDS
  set without `test` takes its `validation` for it.

  Args:
    name: as above.
    data_dir: where TFDS keeps its files; `$TFDS_DATA_DIR`, else `~/.cache/jaxrl`.
    download: whether TFDS may download and prepare what is not there. Many of its sets
      need TensorFlow for that.

  Raises:
    ValueError: for a name that does not exist, data that is not prepared, damaged files,
      or data that batches cannot hold.
  """
  if name in SYNTHETIC:
    from . import synthetic

    return getattr(synthetic, name)()
  folder = pathlib.Path(data_dir or _default_data_dir()).expanduser().resolve()
  if name in SCIKIT_LEARN:
    return _scikit_learn(name, folder)
  from . import _files

  if _files.is_path(name):
    return _files.load(name)
  from . import _tfds

  return _tfds.load(name, folder, download)


def _scikit_learn(name: str, folder: pathlib.Path) -> Dataset:
  from . import _builders

  make = functools.partial(_builders.BUILDERS[name], data_dir=folder, file_format="array_record")
  prepare(make, folder)
  builder = make()
  features: Any = builder.info.features
  return Dataset(
    name=name,
    splits={split: _read(builder, split) for split in SPLITS},
    num_classes=features["labels"].num_classes if "labels" in features else None,
    num_groups=features["group"].num_classes if "group" in features else None,
  )


def size(split: Split) -> int:
  """The number of examples in a split."""
  if isinstance(split, Mapping):
    return len(next(iter(split.values())))
  return len(split)


def in_memory(split: Split) -> Batch:
  """The whole split as arrays, in order."""
  if isinstance(split, Mapping):
    return dict(split)
  return _stack(split.__getitems__(range(size(split))))


def steps_per_epoch(split: Split, batch_size: int) -> int:
  """Full training batches in one pass over the split; the remainder is dropped.

  Raises:
    ValueError: when not even one batch fits.
  """
  check.whole("batch_size", batch_size, 1)
  if batch_size > size(split):
    raise ValueError(f"batch_size must be at most {size(split)}, the split, got {batch_size}")
  return size(split) // batch_size


def batches(
  split: Split,
  batch_size: int,
  *,
  seed: int,
  start_step: int = 0,
  part: tuple[int, int] = (0, 1),
) -> Iterator[Batch]:
  """Training batches without end, from step `start_step` on.

  Each epoch is a new permutation, a pure function of `(seed, epoch)`, so that the step
  number alone is the data position: `start_step=k` gives what follows the first k batches.

  Args:
    split: arrays or a source.
    batch_size: examples a batch; a remainder of the epoch is dropped.
    seed: of the permutations.
    start_step: batches to skip.
    part: `(i, n)` gives the i-th of n equal slices of each batch; nothing else is loaded.

  Example:
    >>> import itertools
    >>> split = {"inputs": np.arange(5.0)}
    >>> stream = batches(split, 2, seed=0)
    >>> first, second, third = itertools.islice(stream, 3)
    >>> again = next(batches(split, 2, seed=0, start_step=2))
    >>> bool((again["inputs"] == third["inputs"]).all())
    True
    >>> sorted(first)
    ['index', 'inputs', 'mask']
  """
  check.whole("seed", seed, 0)
  check.whole("start_step", start_step, 0)
  steps = steps_per_epoch(split, batch_size)
  return _training_batches(split, batch_size, steps, seed, start_step, _slice(batch_size, part))


def eval_batches(
  split: Split, batch_size: int, *, part: tuple[int, int] = (0, 1)
) -> Iterator[Batch]:
  """The split once, in order; the last batch is padded, its `mask` 0 at the padding.

  `part` is as for `batches`.
  """
  check.whole("batch_size", batch_size, 1)
  return _padded_batches(split, batch_size, _slice(batch_size, part))


def _slice(batch_size: int, part: tuple[int, int]) -> slice:
  index, count = part
  if batch_size % count:
    raise ValueError(f"batch_size must be a multiple of the {count} parts, got {batch_size}")
  own = batch_size // count
  return slice(index * own, (index + 1) * own)


def _training_batches(
  split: Split, batch_size: int, steps: int, seed: int, start_step: int, own: slice
) -> Iterator[Batch]:
  mask = np.ones(batch_size, np.float32)[own]
  epoch, step = divmod(start_step, steps)
  while True:
    order = np.random.default_rng((seed, epoch)).permutation(size(split)).astype(np.int32)
    for start in range(step * batch_size, steps * batch_size, batch_size):
      yield _take(split, order[start : start + batch_size][own], mask)
    epoch, step = epoch + 1, 0


def _padded_batches(split: Split, batch_size: int, own: slice) -> Iterator[Batch]:
  end = size(split)
  for start in range(0, end, batch_size):
    rows = np.arange(start, start + batch_size, dtype=np.int32)[own]
    yield _take(split, np.minimum(rows, end - 1), (rows < end).astype(np.float32))


def _take(split: Split, rows: np.ndarray, mask: np.ndarray) -> Batch:
  if isinstance(split, Mapping):
    columns = {name: column[rows] for name, column in split.items()}
  else:
    columns = _stack(split.__getitems__(rows.tolist()))
  return {**columns, "index": rows, "mask": mask}


def _stack(records: Sequence[Mapping[str, Any]]) -> Batch:
  columns = {name: np.stack([record[name] for record in records]) for name in records[0]}
  return {
    name: column.astype(np.int32) if column.dtype == np.int64 else column
    for name, column in columns.items()
  }


def _default_data_dir() -> str:
  cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
  return os.environ.get("TFDS_DATA_DIR") or f"{cache}/jaxrl"


def prepare(make: Callable[[], Any], folder: pathlib.Path) -> None:
  """Writes a TFDS builder's files unless they exist.

  TFDS writes to a folder of its own and renames it, so that a killed process leaves no
  half data set behind. The lock, which dies with its process, keeps a second writer out.
  A builder looks for files only when it is made.
  """
  if make().data_path.exists():
    return
  folder.mkdir(parents=True, exist_ok=True)
  with open(folder / f".{make().name}.lock", "w") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    builder = make()
    if builder.data_path.exists():
      return
    for abandoned in builder.data_path.parent.glob("incomplete.*"):
      shutil.rmtree(abandoned)
    _write_quietly(builder)


def _write_quietly(builder: Any) -> None:
  import tensorflow_datasets as tfds

  tfds.disable_progress_bar()
  no_network = tfds.download.DownloadConfig(try_download_gcs=False)
  with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
    builder.download_and_prepare(download_config=no_network)


def _read(builder: Any, split: str) -> Batch:
  """A split in memory, ordered by `index` (TFDS shuffles what it writes)."""
  try:
    source = builder.as_data_source(split=split)
    columns = _stack(source.__getitems__(range(len(source))))
  except (OSError, RuntimeError, IndexError, ValueError) as error:
    raise ValueError(f"{builder.data_path} is damaged: delete it, and start again") from error
  order = np.argsort(columns.pop("index"))
  return {name: column[order] for name, column in columns.items()}
