"""Twenty-four steps of ASAM and SAM, SGD with momentum and decay behind them.

From github.com/SamsungLabs/ASAM, commit f156a680171d, asam.py. A learning rate of 0.1,
momentum 0.9, decay 0.01.
"""

import numpy as np
from _network import batches, minimized
from _official import prepare, save


def main():
  prepare()
  from asam import ASAM, SAM

  data = batches(np.random.default_rng(0))
  runs = {
    "asam": minimized(ASAM, data, rho=0.5, eta=0.01),
    "asam_far": minimized(ASAM, data, rho=2.0, eta=0.3),
    "sam": minimized(SAM, data, rho=0.3),
  }
  save(__file__, {"inputs": data[0], "labels": data[1], **runs})


main()
