"""[222] Stochastic model building trains with learning rates over orders of magnitude."""

import dataclasses

import numpy as np

from scripts.evidence._experiment import Claim, Experiment, Measure
from scripts.evidence._training import trained
from scripts.train import Config

TASK = Config(dataset="digits", model="mlp", epochs=10)
RATES = (0.1, 0.5, 2.0, 10.0)
WORST = 10.0


def spread(optimizer: str) -> Measure:
  """By how many orders of magnitude the loss of the last epoch differs between the rates."""
  runs = [
    trained(dataclasses.replace(TASK, optimizer=optimizer.format(rate=rate))) for rate in RATES
  ]

  def measure(seeds):
    curves = np.stack([run(seeds)["curve/loss"] for run in runs])
    capped = np.log10(np.minimum(np.nan_to_num(curves, nan=WORST), WORST))
    last = capped[:, :, -1]
    return {
      "orders between the rates": np.max(last, axis=0) - np.min(last, axis=0),
      "curve/log10 of the loss, worst rate": np.max(capped, axis=0),
    }

  return measure


EXPERIMENT = Experiment(
  methods=("smb",),
  family="stochastic",
  setup=(
    "Digits, an MLP of two layers of 128, ten epochs by each of the learning rates 0.1, 0.5, 2 "
    "and 10, compared by the mean loss of the last epoch (10 at most). The null is "
    "`smb(eta=1e-6)`, whose model steps are next to nothing: it drops the steps that fail the "
    "test."
  ),
  arms={
    "method": {"smb(rate)": spread("smb({rate})")},
    "baseline": {"sgd(rate)": spread("sgd({rate})")},
    "null": {"smb(rate, eta=1e-6)": spread("smb({rate}, eta=1e-6)")},
  },
  claims=(
    Claim(
      "The loss depends less on the learning rate than SGD's, by an order of magnitude",
      *("orders between the rates", "lower"),
      margin=1.0,
    ),
  ),
  tuned_by="orders between the rates",
  tuned="lower",
  minutes=3.0,
)
