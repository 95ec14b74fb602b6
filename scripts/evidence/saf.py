"""[192] SAF and MESA find flatter minima than cross-entropy at the cost of one gradient."""

from jaxrl.trouble import Options
from scripts.evidence._curvature import top_eigenvalue
from scripts.evidence._experiment import Claim, Experiment
from scripts.evidence._training import grid
from scripts.train import Config

TASK = Config(dataset="digits", model="mlp", trouble=Options(label_noise=0.4), epochs=40)
RATES = [f"sgd({rate}, momentum=0.9)" for rate in (0.005, 0.01, 0.02)]
MORE_RATES = [f"sgd({rate}, momentum=0.9)" for rate in (0.002, 0.005, 0.007, 0.01, 0.014, 0.02)]
STRENGTHS = (0.3, 0.8)

EXPERIMENT = Experiment(
  methods=("saf", "mesa"),
  family="sharpness",
  setup=(
    "Digits with 40 % symmetric label noise in training, an MLP of two layers of 128, 40 epochs "
    "of SGD with momentum 0.9 for all. MESA's average has a decay of 0.98, since "
    "there are 720 steps. The nulls have `lam=0`."
  ),
  arms={
    "saf": grid(
      *(TASK, top_eigenvalue), objective=[f"saf(lam={x})" for x in STRENGTHS], optimizer=RATES
    ),
    "mesa": grid(
      *(TASK, top_eigenvalue),
      objective=[f"mesa(lam={x}, decay=0.98)" for x in STRENGTHS],
      optimizer=RATES,
    ),
    "baseline": grid(TASK, top_eigenvalue, optimizer=MORE_RATES),
    "null of saf": grid(TASK, top_eigenvalue, objective=["saf(lam=0)"], optimizer=MORE_RATES),
    "null of mesa": grid(
      TASK, top_eigenvalue, objective=["mesa(lam=0, decay=0.98)"], optimizer=MORE_RATES
    ),
  },
  claims=(
    Claim(
      "SAF ends at a smaller largest eigenvalue than cross-entropy after as many gradients",
      *("train/top eigenvalue", "lower"),
      method="saf",
      null="null of saf",
    ),
    Claim(
      "MESA ends at a smaller largest eigenvalue than cross-entropy after as many gradients",
      *("train/top eigenvalue", "lower"),
      method="mesa",
      null="null of mesa",
    ),
  ),
  tuned_by="validation/accuracy",
  tuned="higher",
)
