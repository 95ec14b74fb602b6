"""One RegMixup loss of a linear model, with its ratio, permutation and gradient.

From github.com/FrancescoPinto/RegMixup, commit fd7846532990, models/regmixup.py and
models/regularizers/mixup.py.
"""

import numpy as np
import torch
from _official import prepare, save

SIZE, NUM_FEATURES, NUM_CLASSES, ALPHA, SEED = 5, 3, 4, 20.0, 3


def main():
  prepare()
  from models.regmixup import regmixup_criterion
  from models.regularizers.mixup import mixup_data

  rng = np.random.default_rng(SEED)
  inputs = torch.tensor(rng.normal(size=(SIZE, NUM_FEATURES)))
  labels = torch.tensor(rng.integers(NUM_CLASSES, size=SIZE))
  weights = torch.tensor(rng.normal(size=(NUM_FEATURES, NUM_CLASSES)), requires_grad=True)
  np.random.seed(SEED)
  torch.manual_seed(SEED)
  mixed, own, other, ratio = mixup_data(inputs, labels, ALPHA, ALPHA)
  logits = torch.cat([inputs, mixed]) @ weights
  targets = torch.cat([labels, own]), torch.cat([labels, other])
  value = regmixup_criterion(torch.nn.functional.cross_entropy, logits, *targets, ratio)
  value.backward()
  torch.manual_seed(SEED)
  given = {"inputs": inputs, "labels": labels, "weights": weights.detach(), "ratio": ratio}
  drawn = {"partner": torch.randperm(SIZE), "mixed": mixed}
  save(__file__, {**given, **drawn, "value": value.item(), "gradient": weights.grad})


main()
