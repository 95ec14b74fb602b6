"""[173] MaxSup keeps the variation within a class that label smoothing destroys."""

import numpy as np

from jaxrl import data, plots
from jaxrl.trouble import Options
from scripts.evidence._experiment import Claim, Experiment
from scripts.evidence._training import Trained, grid
from scripts.train import Config

TASK = Config(dataset="digits", model="mlp", trouble=Options(label_noise=0.2), epochs=40)
STRENGTHS = (0.05, 0.1, 0.2)
OPTIMIZERS = [f"sgd({rate}, momentum=0.9)" for rate in (0.02, 0.05)]


def collapse(trained: Trained) -> dict[str, float]:
  """How far the features of a class spread, and how sure the network is where it is wrong."""
  test = trained.predictions["test"]
  confidence = np.exp(plots.log_probabilities(test["logits"])).max(axis=1)
  return {
    "test/within-class distance": _within_class_distance(trained),
    "test/confidence of errors": float(confidence[~plots.correct(test)].mean()),
  }


def _within_class_distance(trained: Trained) -> float:
  """The mean cosine distance between two test examples of a class, in the last hidden layer."""
  split = data.in_memory(trained.dataset.splits["test"])
  x = np.reshape(split["inputs"], (len(split["labels"]), -1))
  for layer in ("Dense_0", "Dense_1"):
    kernel, bias = (np.asarray(trained.state.params[layer][name]) for name in ("kernel", "bias"))
    x = np.maximum(x @ kernel + bias, 0)
  x = x / np.linalg.norm(x, axis=1, keepdims=True)
  classes = (x[split["labels"] == k] for k in range(int(trained.dataset.num_classes or 0)))
  return float(np.mean([1 - np.mean(own @ own.T) for own in classes]))


EXPERIMENT = Experiment(
  methods=("maxsup",),
  family="label noise and confidence",
  setup=(
    "Digits with 20 % symmetric label noise in training, an MLP of two layers of 128, 40 epochs "
    "of SGD with momentum 0.9. The null is label smoothing itself: MaxSup with the label's "
    "logit in place of the largest."
  ),
  arms={
    "method": grid(
      TASK, collapse, objective=[f"maxsup(alpha={a})" for a in STRENGTHS], optimizer=OPTIMIZERS
    ),
    "baseline": grid(
      *(TASK, collapse),
      objective=[f"label_smoothing(alpha={a})" for a in STRENGTHS],
      optimizer=OPTIMIZERS,
    ),
    "null": grid(
      *(TASK, collapse),
      objective=[f"label_smoothing(alpha={a})" for a in STRENGTHS],
      optimizer=OPTIMIZERS,
    ),
  },
  claims=(
    Claim(
      "Features vary more within a class under MaxSup than under label smoothing",
      *("test/within-class distance", "higher"),
    ),
    Claim(
      "MaxSup is less confident than label smoothing where it is wrong",
      *("test/confidence of errors", "lower"),
    ),
    Claim("MaxSup is more accurate than label smoothing", "test/accuracy", "higher"),
  ),
  tuned_by="validation/accuracy",
  tuned="higher",
)
