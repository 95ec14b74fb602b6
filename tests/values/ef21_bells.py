"""Iterates of EF21-HB and EF21-BC on the problem of `_compressed`, from the second repository.

Workers send two entries; in EF21-BC a server sends back three.
"""

from _compressed import PENALTY, RATE, WORKERS, official, points, problem
from _official import save

ENTRIES, RETURNED, MOMENTUM = 2, 3, 0.6
NAMES = ("", "", "")  # of a folder that nothing is written to


def main():
  heavy_ball = official("Logistic regression/ef21_hb.py", "ef21_hb")
  both_ways = official("Logistic regression/ef21_bc.py", "ef21_bc")
  given = problem()
  data = given["start"], given["matrices"], given["targets"], None, None, RATE

  def with_momentum(steps):
    return heavy_ball(*data, MOMENTUM, 0.0, PENALTY, ENTRIES, WORKERS, *NAMES, steps)[3]

  def with_downlink(steps):
    return both_ways(*data, 0.0, PENALTY, ENTRIES, RETURNED, WORKERS, *NAMES, steps)[4]

  found = {"heavy_ball": points(with_momentum), "both_ways": points(with_downlink)}
  options = {"entries": ENTRIES, "returned": RETURNED, "momentum": MOMENTUM}
  save(__file__, {**given, **options, **found})


main()
