"""Iterates of EF14 with Top-2 on the problem of `_compressed`, from the first repository."""

from _compressed import FOLDER, PENALTY, RATE, WORKERS, official, points, problem
from _official import save

ENTRIES = 2


def main():
  run = official(f"{FOLDER}/tkef_pl_distributed_stable.py", "biased_diana_top_k_gd_ef")
  given = problem()
  data = given["start"], given["matrices"], given["targets"], None, None

  def after(steps):
    return run(*data, RATE, 0.0, PENALTY, ENTRIES, WORKERS, steps)[2]

  save(__file__, {**given, "entries": ENTRIES, "points": points(after)})


main()
