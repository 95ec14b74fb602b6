"""Thirty steps of sparse M-FAC by the paper's code, which takes the largest entries of all.

See `_efcp` for repository and commit; optimizers/sparse/SparseGradientMFAC.py, as it is.
"""

from _efcp import points, prepare_efcp, problem
from _official import save

HYPER = {"ngrads": 6, "k_init": 0.1, "lr": 0.03, "damp": 1e-3, "momentum": 0.5}


def main():
  prepare_efcp()
  from optimizers.sparse import SparseGradientMFAC as module
  from optimizers.sparse import SparseHinvSequential as inverse

  inverse.parallel_apply = lambda modules, inputs: [modules[i](i) for i in inputs]
  given = problem()

  def make(params):
    decay = {"wd_type": "wd", "weight_decay": 0.0}
    return module.SparseGradientMFAC(params, **HYPER, **decay, dev="cpu", gpus=["cpu"])

  save(__file__, {**given, **HYPER, "params": points(make, given)})


main()
