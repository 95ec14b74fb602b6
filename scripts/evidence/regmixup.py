"""[357] RegMixup knows what it has not seen, where mixup is unsure of everything."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl import data, plots
from jaxrl.trouble import Options
from scripts.evidence._experiment import Claim, Experiment
from scripts.evidence._training import Trained, grid
from scripts.train import Config

TASK = Config(dataset="digits", model="mlp", trouble=Options(shift="noise", severity=4), epochs=30)
KNOWN = 8
OPTIMIZERS = [f"sgd({rate}, momentum=0.9)" for rate in (0.01, 0.02, 0.05)]
MORE_OPTIMIZERS = [f"sgd({rate}, momentum=0.9)" for rate in (0.005, 0.01, 0.02, 0.05, 0.1, 0.2)]


def without_eight_and_nine(dataset: data.Dataset) -> data.Dataset:
  """The digits 0 to 7."""
  splits = {}
  for name, source in dataset.splits.items():
    split = data.in_memory(source)
    splits[name] = {column: x[split["labels"] < KNOWN] for column, x in split.items()}
  return dataclasses.replace(dataset, splits=splits, num_classes=KNOWN)


def detection(trained: Trained) -> dict[str, float]:
  """How well entropy tells the unknown digits 8 and 9 of the clean test split from others."""
  test = data.in_memory(data.load(TASK.dataset).splits["test"])
  batch = jax.tree.map(jnp.asarray, next(data.eval_batches(test, data.size(test))))
  logits = np.asarray(trained.parts.predict(trained.state, batch)["logits"])
  log_p = plots.log_probabilities(logits)
  entropy = -np.sum(np.exp(log_p) * log_p, axis=1)
  unknown = test["labels"] >= KNOWN
  known = {"logits": logits[~unknown], "labels": test["labels"][~unknown]}
  return {
    "unknown/AUROC": area_under_curve(entropy[unknown], entropy[~unknown]),
    "clean/accuracy": plots.numbers(known)["accuracy"],
  }


def area_under_curve(positive: np.ndarray, negative: np.ndarray) -> float:
  """The chance that a positive score is above a negative one; ties count half."""
  difference = positive[:, None] - negative[None, :]
  return float(np.mean((difference > 0) + 0.5 * (difference == 0)))


def arm(objectives: list[str], optimizers: list[str]):
  """Trained on eight digits, tested on them and on the other two."""
  return grid(TASK, detection, without_eight_and_nine, objective=objectives, optimizer=optimizers)


EXPERIMENT = Experiment(
  methods=("regmixup",),
  family="calibration",
  setup=(
    "Digits 0 to 7, an MLP of two layers of 128, 30 epochs of SGD with momentum 0.9; the test "
    "split has Gaussian noise of deviation 0.26. 8 and 9 are the unknown. The nulls are "
    "RegMixup without its regulariser, and mixup alone with RegMixup's concentrated ratios."
  ),
  arms={
    "method": arm(["regmixup(alpha=10)", "regmixup(alpha=20)"], OPTIMIZERS),
    "mixup": arm([f"mixup(alpha={a}) | cross_entropy()" for a in (0.2, 1.0)], OPTIMIZERS),
    "cross-entropy": arm(["cross_entropy()"], MORE_OPTIMIZERS),
    "mixup at 20": arm([f"mixup(alpha={a}) | cross_entropy()" for a in (10, 20)], OPTIMIZERS),
    "null": arm(["regmixup(eta=0, official=False)"], MORE_OPTIMIZERS),
  },
  claims=(
    Claim(
      "RegMixup's entropy finds unknown classes better than mixup's",
      *("unknown/AUROC", "higher"),
      baseline="mixup",
      null="mixup at 20",
    ),
    Claim(
      "RegMixup is better calibrated under noise than cross-entropy",
      *("test/ece", "lower"),
      baseline="cross-entropy",
    ),
    Claim(
      "RegMixup is more accurate than cross-entropy on clean data",
      *("clean/accuracy", "higher"),
      baseline="cross-entropy",
    ),
  ),
  tuned_by="validation/accuracy",
  tuned="higher",
)
