"""Thirty steps of sparse GGT by the paper's code, once with an eps that leaves the jitter small.

See `_efcp` for repository and commit; optimizers/sparse/SparseGGT_DenseFormat.py, as it is but
for its call of `apply_topk`, whose arguments have changed since, and a wait for a key.
"""

from _efcp import points, prepare_efcp, problem
from _official import save

HYPER = {"r": 6, "k_init": 0.1, "lr": 0.05, "wd": 0.1, "beta1": 0.0, "beta2": 1.0}
EPS, SMALL = 0.1, 1e-8
JITTER = 1e-6  # in the code


def main():
  prepare_efcp()
  from helpers.optim import apply_topk
  from optimizers.sparse import SparseGGT_DenseFormat as module

  def feedback(layerwise_topk, **arguments):
    assert not layerwise_topk
    return [x for i, x in enumerate(apply_topk(use_ef=True, **arguments)) if i != 1]

  module.apply_topk, module.input, module.print = feedback, str, lambda *_: None
  module.get_first_device = lambda: "cpu"
  given = problem()
  runs = []
  for eps, lr in ((EPS, HYPER["lr"]), (SMALL, 1e-9)):
    hyper = {**HYPER, "eps": eps, "lr": lr}
    found = points(lambda params, hyper=hyper: module.SparseGGT_DenseFormat(params, **hyper), given)
    runs.append({"eps": eps, "lr": lr, "params": found})
  save(__file__, {**given, **HYPER, "jitter": JITTER, "runs": runs})


main()
