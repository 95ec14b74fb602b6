"""Iterates of EF21+ with Top-2 on the problem of `_compressed`, from the first repository.

`replaced` counts the workers that took the compressed gradient, in each step.
"""

from _compressed import FOLDER, PENALTY, RATE, STEPS, WORKERS, official, points, problem
from _official import save

ENTRIES = 2


def main():
  run = official(f"{FOLDER}/bdfg_plus_pl_distributed_stable.py", "biased_diana_top_k_gd")
  given = problem()
  data = given["start"], given["matrices"], given["targets"], None, None

  def after(steps):
    return run(*data, RATE, 0.0, PENALTY, ENTRIES, WORKERS, 1.0, steps)

  kept = after(STEPS - 2)[5]
  replaced = [0] + [WORKERS - int(n) for n in kept[1:]]
  found = points(lambda steps: after(steps)[2])
  save(__file__, {**given, "entries": ENTRIES, "points": found, "replaced": replaced})


main()
