"""Data sets made harder on purpose: pure functions of a Dataset and a seed.

`label_noise`, `imbalance` and `subset` change the training split alone; `spurious_groups`
marks every split, since the mark is what the groups are about, but only in training does it
go with the label; `shift` changes the test split alone. What a function changes is read into
memory. They compose; `apply` composes them in the order in which they make sense together.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from . import check, data
from ._rows import shuffled_by_class
from .data import Batch, Dataset

NOISE_DEVIATIONS = (0.08, 0.12, 0.18, 0.26, 0.38)
DEGREES = 15


@dataclasses.dataclass(frozen=True)
class Options:
  """What `apply` does to a data set; by default nothing.

  Attributes:
    label_noise: rate of wrong labels in training.
    label_noise_kind: which labels they become.
    imbalance: ratio of the largest to the smallest training class.
    groups: `"spurious"` adds a mark that goes with the label in training.
    shift: of the test split, `"rotation"` or `"noise"`.
    severity: of the shift, 1 to 5.
    train_size: training examples to keep, 0 for all.
    trouble_seed: of all of it.
  """

  label_noise: float = 0.0
  label_noise_kind: Literal["symmetric", "asymmetric", "instance"] = "symmetric"
  imbalance: float = 1.0
  groups: Literal["spurious"] | None = None
  shift: Literal["rotation", "noise"] | None = None
  severity: int = 3
  train_size: int = 0
  trouble_seed: int = 0


def apply(dataset: Dataset, options: Options) -> Dataset:
  """`dataset` with all the trouble that the options name.

  The order is imbalance, training size, spurious groups, label noise, shift, so that groups
  are those of the right labels.

  Args:
    dataset: any.
    options: what to do.

  Returns:
    The changed Dataset; the same object if there is nothing to do.

  Raises:
    ValueError: an option cannot be, or not for this data set.

  Example:
    >>> from jaxrl import synthetic
    >>> apply(synthetic.two_moons(), Options(train_size=50)).num_examples
    50
  """
  check.whole("train_size", options.train_size, 0)
  check.one_of("groups", options.groups or "spurious", ["spurious"])
  seed = options.trouble_seed
  if options.imbalance != 1:
    dataset = imbalance(dataset, options.imbalance, seed=seed)
  if options.train_size:
    dataset = subset(dataset, options.train_size, seed=seed)
  if options.groups:
    dataset = spurious_groups(dataset, seed=seed)
  if options.label_noise:
    dataset = label_noise(dataset, options.label_noise, options.label_noise_kind, seed=seed)
  if options.shift:
    dataset = shift(dataset, options.shift, options.severity, seed=seed)
  return dataset


def label_noise(
  dataset: Dataset, rate: float, kind: str = "symmetric", *, seed: int = 0
) -> Dataset:
  """Wrong labels in the training split.

  Each label y of K classes is replaced, independently of the others, by one drawn from

  ```
  symmetric:   P(y) = 1 - rate,  P(j) = rate / (K - 1)                       for j != y
  asymmetric:  P(y) = 1 - rate,  P(y + 1 mod K) = rate
  instance:    P(y) = 1 - q,     P(j) = q softmax_{j != y}(x W_y)_j,
               q ~ N(rate, 0.1^2) truncated to [0, 1],  W_y [S, K] ~ N(0, I)
  ```

  where x `[S]` is the flattened input. Every other column stays, `group` too.

  Args:
    dataset: with `labels`.
    rate: expected share of wrong labels, in [0, 1].
    kind: `"symmetric"`, `"asymmetric"` (pair flipping) or `"instance"`.
    seed: of the draws.

  Returns:
    The Dataset with noisy training labels; where they differ from those of `dataset`, they
    are wrong.

  Raises:
    ValueError: no labels, or an argument out of range.

  Notes:
    Truncation moves the mean of q towards 1/2 where `rate` is within 0.2 of 0 or 1. Rate 0
    means no noise for every kind. Patrini et al. choose the pairs of similar classes by hand
    for each data set; the next class is the choice of Han et al. for all.

  References:
    G. Patrini, A. Rozza, A. K. Menon, R. Nock, L. Qu. Making deep neural networks robust to
    label noise: a loss correction approach. CVPR 2017, arXiv 1609.03683.
    B. Han et al. Co-teaching: robust training of deep neural networks with extremely noisy
    labels. NeurIPS 2018, arXiv 1804.06872 (symmetry and pair flipping).
    X. Xia et al. Part-dependent label noise: towards instance-dependent label noise.
    NeurIPS 2020, arXiv 2006.07836 (algorithm 2).

  Example:
    >>> from jaxrl import synthetic
    >>> clean = synthetic.two_moons()
    >>> noisy = label_noise(clean, 1.0)
    >>> a, b = (d.splits["train"]["labels"] for d in (clean, noisy))
    >>> bool((a == 1 - b).all())
    True
  """
  check.between("label_noise", rate, 0, 1)
  check.one_of("label_noise_kind", kind, _NOISES)
  train, rng = _training(dataset, "label_noise"), _generator(seed, "label_noise")
  if rate == 0:
    return dataset
  labels = _NOISES[kind](train, int(dataset.num_classes or 0), rate, rng)
  return _with(dataset, train={**train, "labels": labels.astype(np.int32)})


def _symmetric(train: Batch, classes: int, rate: float, rng: np.random.Generator) -> np.ndarray:
  steps = rng.integers(1, classes, size=len(train["labels"]))
  return _moved(train["labels"], steps, classes, rate, rng)


def _asymmetric(train: Batch, classes: int, rate: float, rng: np.random.Generator) -> np.ndarray:
  return _moved(train["labels"], np.int32(1), classes, rate, rng)


def _moved(
  labels: np.ndarray, steps: Any, classes: int, rate: float, rng: np.random.Generator
) -> np.ndarray:
  wrong = rng.random(len(labels)) < rate
  return np.where(wrong, (labels + steps) % classes, labels)


def _instance(train: Batch, classes: int, rate: float, rng: np.random.Generator) -> np.ndarray:
  from scipy import stats

  labels = train["labels"]
  inputs = train["inputs"].reshape(len(labels), -1)
  low, high = -rate / 0.1, (1 - rate) / 0.1
  size = len(labels)
  rates = np.asarray(stats.truncnorm.rvs(low, high, rate, 0.1, size=size, random_state=rng))
  noisy = labels.copy()
  for label in range(classes):
    weights = rng.normal(size=(inputs.shape[1], classes))
    rows = np.flatnonzero(labels == label)
    scores = inputs[rows] @ weights
    scores[:, label] = -np.inf
    # The largest of scores with Gumbel noise is a draw from their softmax.
    other = np.argmax(scores + rng.gumbel(size=scores.shape), axis=1)
    noisy[rows] = np.where(rng.random(len(rows)) < rates[rows], other, label)
  return noisy


_NOISES: dict[str, Callable[..., np.ndarray]] = {
  "asymmetric": _asymmetric,
  "instance": _instance,
  "symmetric": _symmetric,
}


def imbalance(dataset: Dataset, ratio: float, *, seed: int = 0) -> Dataset:
  """A training split with a long tail of small classes.

  Class k = 0, ..., K - 1 keeps `n_k ratio^(-k / (K - 1))` of its n_k examples, rounded, but
  at least one: the first class all, the last one `1 / ratio` of them.

  Args:
    dataset: with `labels`.
    ratio: at least 1, which changes nothing.
    seed: of which examples stay; their order does too.

  Returns:
    The Dataset with fewer training examples.

  Raises:
    ValueError: no labels, or a ratio below 1.

  References:
    Y. Cui, M. Jia, T.-Y. Lin, Y. Song, S. Belongie. Class-balanced loss based on effective
    number of samples. CVPR 2019, arXiv 1901.05555 (section 5.1).

  Example:
    >>> from jaxrl import synthetic
    >>> tail = imbalance(synthetic.spirals(1500), 100)
    >>> int(np.bincount(tail.splits["train"]["labels"])[-1]) <= 4
    True
  """
  check.at_least("imbalance", ratio, 1)
  train, rng = _training(dataset, "imbalance"), _generator(seed, "imbalance")
  classes, kept = int(dataset.num_classes or 0), []
  for label in range(classes):
    rows = rng.permutation(np.flatnonzero(train["labels"] == label))
    share = ratio ** (-label / max(1, classes - 1))
    kept.append(rows[: max(1, round(share * len(rows)))])
  return _with(dataset, train=_chosen(train, np.sort(np.concatenate(kept))))


def subset(dataset: Dataset, size: int, *, seed: int = 0) -> Dataset:
  """A training split of `size` examples, in which each class keeps its share.

  Smaller sizes with the same seed are subsets of larger ones.

  Args:
    dataset: any.
    size: training examples to keep.
    seed: of which; their order stays.

  Returns:
    The Dataset with fewer training examples.

  Raises:
    ValueError: a size below 1 or above that of the split.

  Example:
    >>> from jaxrl import synthetic
    >>> small = subset(synthetic.spirals(1500), 30)
    >>> small.num_examples
    30
  """
  check.whole("train_size", size, 1)
  if size > dataset.num_examples:
    most = f"{dataset.num_examples}, the training split"
    raise ValueError(f"train_size must be at most {most}, got {size}")
  train = data.in_memory(dataset.splits["train"])
  rng = _generator(seed, "train_size")
  order = shuffled_by_class(train.get("labels"), dataset.num_examples, rng)
  return _with(dataset, train=_chosen(train, np.sort(order[:size])))


def spurious_groups(dataset: Dataset, correlation: float = 0.95, *, seed: int = 0) -> Dataset:
  """A mark that predicts the parity of the label in training, and nothing in the other splits.

  ```
  group = 2 (label mod 2) + mark,    mark in {0, 1}
  P(mark = label mod 2) = correlation in training, 1/2 in validation and test
  ```

  exactly, up to rounding, within each parity. The mark of an image `[H, W, C]` is its top
  left corner, a quarter of each side, black for 0 and white for 1. Other inputs `[F]` get
  one more feature, -1 or 1.

  Args:
    dataset: with `labels`. A `group` that it has is replaced.
    correlation: share of training examples whose mark is the parity.
    seed: of which they are.

  Returns:
    The Dataset with marked inputs and four groups.

  Raises:
    ValueError: no labels, inputs of other shapes, or a correlation outside [0, 1].

  References:
    S. Sagawa, P. W. Koh, T. B. Hashimoto, P. Liang. Distributionally robust neural networks
    for group shifts. ICLR 2020, arXiv 1911.08731 (Waterbirds: 95 % in training, balanced
    for validation and test).

  Example:
    >>> from jaxrl import synthetic
    >>> marked = spurious_groups(synthetic.two_moons(1000))
    >>> np.bincount(marked.splits["train"]["group"]).sum() == 600
    np.True_
    >>> marked.splits["test"]["inputs"].shape
    (200, 3)
  """
  check.between("correlation", correlation, 0, 1)
  _training(dataset, "groups")
  rng = _generator(seed, "groups")
  splits = {}
  for name in data.SPLITS:
    split = data.in_memory(dataset.splits[name])
    parity = split["labels"] % 2
    marks = _marks(parity, correlation if name == "train" else 0.5, rng)
    inputs = _marked(split["inputs"], marks)
    splits[name] = {**split, "inputs": inputs, "group": (2 * parity + marks).astype(np.int32)}
  return dataclasses.replace(dataset, splits=splits, num_groups=4)


def _marks(parity: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
  """Marks of which `share` are the parity, within both parities."""
  marks = 1 - parity
  for value in (0, 1):
    rows = rng.permutation(np.flatnonzero(parity == value))
    marks[rows[: round(share * len(rows))]] = value
  return marks


def _marked(inputs: np.ndarray, marks: np.ndarray) -> np.ndarray:
  marks = marks.astype(np.float32)
  if inputs.ndim == 2:
    return np.concatenate([inputs, 2 * marks[:, None] - 1], axis=1)
  if inputs.ndim != 4:
    shape = inputs.shape[1:]
    raise ValueError(f"groups need images [H, W, C] or rows [F], got inputs of shape {shape}")
  height, width = (max(1, side // 4) for side in inputs.shape[1:3])
  marked = inputs.copy()
  marked[:, :height, :width] = marks[:, None, None, None]
  return marked


def shift(dataset: Dataset, kind: str, severity: int = 3, *, seed: int = 0) -> Dataset:
  """A test split from elsewhere.

  - `"rotation"`: every image turned by 15 degrees times the severity, interpolated linearly,
    black where nothing was.
  - `"noise"`: Gaussian noise of deviation 0.08, 0.12, 0.18, 0.26, 0.38 by severity added to
    the inputs; images are clipped to [0, 1].

  Args:
    dataset: with images `[H, W, C]`, or for noise any inputs.
    kind: `"rotation"` or `"noise"`.
    severity: 1 to 5.
    seed: of the noise.

  Returns:
    The Dataset with other test inputs.

  Raises:
    ValueError: an unknown kind or severity, or a rotation of something else than images.

  References:
    Y. Ovadia et al. Can you trust your model's uncertainty? NeurIPS 2019, arXiv 1906.02530
    (rotations in steps of 15 degrees).
    D. Hendrycks, T. Dietterich. Benchmarking neural network robustness to common
    corruptions and perturbations. ICLR 2019, arXiv 1903.12261 (Gaussian noise, the
    deviations of ImageNet-C).

  Example:
    >>> from jaxrl import synthetic
    >>> a = synthetic.two_moons()
    >>> b = shift(a, "noise", 1)
    >>> bool(abs((b.splits["test"]["inputs"] - a.splits["test"]["inputs"]).std() - 0.08) < 0.01)
    True
  """
  check.one_of("shift", kind, ["noise", "rotation"])
  check.whole("severity", severity, 1)
  check.between("severity", severity, 1, len(NOISE_DEVIATIONS))
  test = data.in_memory(dataset.splits["test"])
  inputs = test["inputs"]
  if kind == "noise":
    moved = inputs + NOISE_DEVIATIONS[severity - 1] * _generator(seed, "shift").normal(
      size=inputs.shape
    )
    moved = np.clip(moved, 0, 1) if inputs.ndim == 4 else moved
  else:
    moved = _rotated(inputs, DEGREES * severity)
  return _with(dataset, test={**test, "inputs": moved.astype(np.float32)})


def _rotated(images: np.ndarray, degrees: float) -> np.ndarray:
  from scipy import ndimage

  if images.ndim != 4:
    shape = images.shape[1:]
    raise ValueError(f"shift rotation needs images [H, W, C], got inputs of shape {shape}")
  return ndimage.rotate(images, degrees, axes=(2, 1), reshape=False, order=1)


def _training(dataset: Dataset, option: str) -> Batch:
  """The training split in memory; ValueError if it lacks what the option needs."""
  if dataset.num_classes is None:
    raise ValueError(f"{option} needs `labels`: {dataset.name} has none")
  if dataset.of_tokens:
    raise ValueError(f"{option} needs one label an example: {dataset.name} has one a token")
  return data.in_memory(dataset.splits["train"])


def _generator(seed: int, option: str) -> np.random.Generator:
  """Random numbers of its own for each option, so that options don't change each other."""
  check.whole("trouble_seed", seed, 0)
  return np.random.default_rng((seed, *option.encode()))


def _chosen(split: Batch, rows: np.ndarray) -> Batch:
  return {name: values[rows] for name, values in split.items()}


def _with(dataset: Dataset, **splits: Batch) -> Dataset:
  return dataclasses.replace(dataset, splits={**dataset.splits, **splits})
