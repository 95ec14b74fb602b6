"""An experiment as data, and the rule that judges it: arms are tuned, measured, compared."""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np

from jaxrl import check
from jaxrl.plots import interval

Direction: TypeAlias = Literal["higher", "lower"]
Measurements: TypeAlias = Mapping[str, np.ndarray]
Measure: TypeAlias = Callable[[Sequence[int]], Measurements]
Arm: TypeAlias = Mapping[str, Measure]
"""The settings among which a method is tuned, by their names."""

SHOWN, NOT_SHOWN, MIXED, INVALID = "shown", "not shown", "mixed", "invalid"
RULE = (
  "A claim is `shown` when the whole 95 % interval (Student's t) of the paired difference over "
  "the seeds lies beyond the margin in the paper's direction, else `not shown`. Every arm is "
  "tuned over a grid of the same size, by validation on seeds of its own. The null, the method "
  "with its hard part off, must come out `not shown`: otherwise the experiment is `invalid`."
)


class OutOfTime(Exception):
  """An experiment takes longer than it says."""


class Claim(NamedTuple):
  """What a paper says, as a comparison of two arms.

  Attributes:
    text: the claim in a sentence.
    statistic: the measurement that is compared.
    direction: where the method should lie.
    margin: by how much more than this, in the statistic's unit, at least 0.
    method: name of the arm with the method.
    baseline: name of the arm that it is compared with.
    null: name of the arm with the method's hard part off.
    null_baseline: name of the arm that the null is compared with; `baseline` if empty.
  """

  text: str
  statistic: str
  direction: Direction
  margin: float = 0.0
  method: str = "method"
  baseline: str = "baseline"
  null: str = "null"
  null_baseline: str = ""


class Difference(NamedTuple):
  """A paired difference over seeds, its 95 % interval, and whether it is beyond the margin."""

  mean: float
  low: float
  high: float
  verdict: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
  """All that is decided before the run.

  Attributes:
    methods: the functions whose claims these are, by name; changing their files makes the
      verdict stale.
    family: the table that it belongs to.
    setup: data, model and budget, in a few sentences.
    arms: what is compared, each with the settings among which it is tuned.
    claims: what is judged.
    tuned_by: the measurement by which settings are chosen, taken of `tuning_seeds`.
    tuned: which way it is better.
    seeds: of the comparison, at least five; the same for all arms.
    tuning_seeds: others.
    minutes: that it takes at most on two cores.

  Raises:
    ValueError: grids differ in size, seeds are too few or overlap, or a claim names an arm
      that there isn't.
  """

  methods: tuple[str, ...]
  family: str
  setup: str
  arms: Mapping[str, Arm]
  claims: tuple[Claim, ...]
  tuned_by: str
  tuned: Direction
  seeds: tuple[int, ...] = tuple(range(8))
  tuning_seeds: tuple[int, ...] = tuple(range(100, 104))
  minutes: float = 5.0

  def __post_init__(self):
    if len(self.seeds) < 5:
      raise ValueError(f"seeds must be at least five, got {self.seeds}")
    if set(self.seeds) & set(self.tuning_seeds):
      raise ValueError(f"tuning_seeds must be others than seeds, got {self.tuning_seeds}")
    sizes = {name: len(arm) for name, arm in self.arms.items()}
    if len(set(sizes.values())) != 1 or 0 in sizes.values():
      raise ValueError(f"arms must have grids of the same size, got {sizes}")
    for claim in self.claims:
      check.one_of("direction", claim.direction, ("higher", "lower"))
      check.at_least("margin", claim.margin, 0)
      for field in ("method", "baseline", "null"):
        check.one_of(field, getattr(claim, field), self.arms)
      check.one_of("null_baseline", claim.null_baseline or claim.baseline, self.arms)


class Tuned(NamedTuple):
  """An arm after tuning and measuring.

  Attributes:
    scores: the mean of `tuned_by` for each setting.
    chosen: the best setting.
    measured: what it gave on the seeds of the comparison, `[seeds]` or `[seeds, points]`.
  """

  scores: dict[str, float]
  chosen: str
  measured: dict[str, np.ndarray]


class Judged(NamedTuple):
  """A claim, and how the method and the null differ from the baseline."""

  claim: Claim
  method: Difference
  null: Difference


class Result(NamedTuple):
  """What an experiment found."""

  verdict: str
  claims: tuple[Judged, ...]
  arms: dict[str, Tuned]
  seconds: float


def run(
  experiment: Experiment, say: Callable[[str], Any] = print, minutes: float | None = None
) -> Result:
  """Tunes and measures every arm, and judges the claims.

  Args:
    experiment: what to do.
    say: is told each arm's outcome.
    minutes: how long it may take; as long as it says by default.

  Raises:
    OutOfTime: it takes longer.
  """
  start = time.perf_counter()
  limit = 60 * (experiment.minutes if minutes is None else minutes)

  def measured(measure, seeds):
    values = {name: np.asarray(x, np.float64) for name, x in measure(seeds).items()}
    took = time.perf_counter() - start
    if took > limit:
      raise OutOfTime(f"{took:.0f} s are over, it was to take {limit:.0f} s")
    return values

  arms = {}
  for name, arm in experiment.arms.items():
    arms[name] = _tuned(experiment, arm, measured)
    say(f"{name}: {arms[name].chosen} ({time.perf_counter() - start:.0f} s)")
  claims = tuple(judge(claim, arms) for claim in experiment.claims)
  return Result(overall(claims), claims, arms, time.perf_counter() - start)


def _tuned(experiment: Experiment, arm: Arm, measured: Callable[..., Any]) -> Tuned:
  scores = {}
  for setting, measure in arm.items():
    values = measured(measure, experiment.tuning_seeds) if len(arm) > 1 else {}
    scores[setting] = float(np.mean(values[experiment.tuned_by])) if values else float("nan")
  chosen = best(scores, experiment.tuned)
  return Tuned(scores, chosen, measured(arm[chosen], experiment.seeds))


def best(scores: Mapping[str, float], direction: Direction) -> str:
  """The setting with the best score, the first of equals; one that is no number is the worst."""
  sign = 1 if direction == "higher" else -1
  return max(scores, key=lambda name: sign * scores[name] if np.isfinite(scores[name]) else -np.inf)


def judge(claim: Claim, arms: Mapping[str, Tuned]) -> Judged:
  """The claim by the rule, for the method and for the null."""
  method, null = (paired(claim, arms, name) for name in ("method", "null"))
  return Judged(claim, difference(claim, method), difference(claim, null))


def paired(claim: Claim, arms: Mapping[str, Tuned], which: str) -> np.ndarray:
  """The differences `[seeds]` of a claim's `method` or `null` from what it is compared with."""
  other = claim.null_baseline if which == "null" else ""
  names = getattr(claim, which), other or claim.baseline
  own, baseline = (arms[name].measured[claim.statistic] for name in names)
  return own - baseline


def difference(claim: Claim, differences: np.ndarray) -> Difference:
  """The verdict on paired differences `[seeds]`; one that is no number shows nothing."""
  mean, half = (float(value) for value in interval(differences))
  low, high = mean - half, mean + half
  shown = low > claim.margin if claim.direction == "higher" else high < -claim.margin
  return Difference(mean, low, high, SHOWN if shown else NOT_SHOWN)


def overall(claims: Sequence[Judged]) -> str:
  """The verdict on a method from those on its claims."""
  if any(judged.null.verdict == SHOWN for judged in claims):
    return INVALID
  verdicts = {judged.method.verdict for judged in claims}
  return verdicts.pop() if len(verdicts) == 1 else MIXED
