"""[281] SAM escapes the saddle points at which the rare classes of a long tail end."""

import dataclasses

import numpy as np

from jaxrl import data, plots
from jaxrl.trouble import Options
from scripts.evidence._curvature import smallest_eigenvalue
from scripts.evidence._experiment import Claim, Experiment
from scripts.evidence._training import Trained, grid
from scripts.train import Config

TASK = Config(dataset="digits", model="mlp", trouble=Options(imbalance=30), epochs=20)
TAIL = (7, 8, 9)
RATES, LENGTHS = (0.02, 0.05), (20, 40)


def repeated(dataset: data.Dataset) -> data.Dataset:
  """Examples of rare classes repeated until all classes are about as large: weights by class."""
  train = data.in_memory(dataset.splits["train"])
  count = np.bincount(train["labels"])
  times = np.rint(count.max() / count).astype(int)[train["labels"]]
  longer = {name: np.repeat(column, times, axis=0) for name, column in train.items()}
  return dataclasses.replace(dataset, splits={**dataset.splits, "train": longer})


def tail(trained: Trained) -> dict[str, float]:
  """Accuracy and curvature of the three rarest classes."""
  accuracy = plots.accuracy_by(trained.predictions["test"], "labels")
  return {
    "test/accuracy of the tail": float(accuracy[list(TAIL)].mean()),
    **smallest_eigenvalue(trained, TAIL),
  }


EXPERIMENT = Experiment(
  methods=("sam",),
  family="sharpness",
  setup=(
    "Digits with 120 training examples of the commonest class and 4 of the rarest, weighted by "
    "class from the start (rare examples are repeated), an MLP of two layers of 128, SGD with "
    "momentum 0.9. SGD may train for 40 epochs, as long as 20 of SAM take. The tail are the "
    "three rarest classes. The null is `sam(rho=0)`."
  ),
  arms={
    "method": grid(
      *(TASK, tail, repeated),
      optimizer=[
        f"sam(rho={rho}) | sgd({rate}, momentum=0.9)" for rate in RATES for rho in (0.2, 0.5)
      ],
    ),
    "baseline": grid(
      *(TASK, tail, repeated),
      optimizer=[f"sgd({rate}, momentum=0.9)" for rate in RATES],
      epochs=LENGTHS,
    ),
    "null": grid(
      *(TASK, tail, repeated),
      optimizer=[f"sam(rho=0) | sgd({rate}, momentum=0.9)" for rate in RATES],
      epochs=LENGTHS,
    ),
  },
  claims=(
    Claim(
      "SAM raises the accuracy of the three rarest classes",
      *("test/accuracy of the tail", "higher"),
    ),
    Claim(
      "The smallest eigenvalue of the rarest classes' Hessians is less negative under SAM",
      *("train/smallest eigenvalue of the tail", "higher"),
    ),
  ),
  tuned_by="validation/accuracy",
  tuned="higher",
)
