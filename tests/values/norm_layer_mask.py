"""Twenty-four steps of SAM-ON: SAM and ASAM on a LayerNorm only, and on all but it.

From github.com/mueller-mp/SAM-ON, commit 8b8869ad1e03, sam_on.py, with p = 2 and elementwise
scaling. A learning rate of 0.1, momentum 0.9, decay 0.01.
"""

import numpy as np
from _network import batches, minimized
from _official import prepare, save


def main():
  prepare()
  from sam_on import ASAM_ON, SAM_ON

  data = batches(np.random.default_rng(0))
  runs = {
    "sam": minimized(SAM_ON, data, rho=0.5, only_norm=True),
    "asam": minimized(ASAM_ON, data, rho=0.5, eta=0.01, only_norm=True),
    "asam_biases": minimized(ASAM_ON, data, rho=2.0, eta=0.0, only_norm=True, normalize_bias=True),
    "asam_rest": minimized(ASAM_ON, data, rho=0.5, eta=0.0, no_norm=True),
  }
  save(__file__, {"inputs": data[0], "labels": data[1], **runs})


main()
