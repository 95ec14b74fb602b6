"""[57] ELR keeps a large network from memorising wrong labels."""

import numpy as np

from jaxrl import data, plots
from jaxrl.trouble import Options
from scripts.evidence._experiment import Claim, Experiment
from scripts.evidence._training import Trained, grid
from scripts.train import Config

TASK = Config(dataset="digits", model="mlp", trouble=Options(label_noise=0.4), epochs=50)
RATES = [f"sgd({rate}, momentum=0.9)" for rate in (0.01, 0.02, 0.05)]
MORE_RATES = [f"sgd({rate}, momentum=0.9)" for rate in (0.005, 0.01, 0.02, 0.05, 0.1, 0.2)]


def memorised(trained: Trained) -> dict[str, float]:
  """The share of the wrong training labels that the network predicts."""
  clean = data.in_memory(data.load(TASK.dataset).splits["train"])["labels"]
  train = trained.predictions["train"]
  wrong = train["labels"] != clean[train["index"]]
  return {"train/memorised": float(np.mean(plots.correct(train)[wrong]))}


EXPERIMENT = Experiment(
  methods=("elr",),
  family="noisy labels",
  setup=(
    "Digits with 40 % symmetric label noise in training, an MLP of two layers of 128, 50 epochs "
    "of SGD with momentum 0.9. The null is `elr(lam=0)`."
  ),
  arms={
    "method": grid(TASK, memorised, objective=["elr(lam=1)", "elr(lam=3)"], optimizer=RATES),
    "baseline": grid(TASK, memorised, optimizer=MORE_RATES),
    "null": grid(TASK, memorised, objective=["elr(lam=0)"], optimizer=MORE_RATES),
  },
  claims=(
    Claim(
      "ELR is more accurate on clean test data than cross-entropy, by more than 5 points",
      *("test/accuracy", "higher", 0.05),
    ),
    Claim("ELR memorises fewer of the wrong labels", "train/memorised", "lower", 0.1),
  ),
  tuned_by="validation/accuracy",
  tuned="higher",
)
