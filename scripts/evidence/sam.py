"""[183] SAM finds flatter minima that generalise better, here under wrong labels."""

from jaxrl.trouble import Options
from scripts.evidence._curvature import top_eigenvalue
from scripts.evidence._experiment import Claim, Experiment
from scripts.evidence._training import grid
from scripts.train import Config

TASK = Config(dataset="digits", model="mlp", trouble=Options(label_noise=0.4), epochs=40)
RATES, LENGTHS = (0.02, 0.05, 0.1), (40, 80)

EXPERIMENT = Experiment(
  methods=("sam",),
  family="sharpness",
  setup=(
    "Digits with 40 % symmetric label noise in training, an MLP of two layers of 128, SGD with "
    "momentum 0.9. SGD may train for 80 epochs, as long as 40 of SAM take. The null is "
    "`sam(rho=0)`."
  ),
  arms={
    "method": grid(
      *(TASK, top_eigenvalue),
      optimizer=[
        f"sam(rho={rho}) | sgd({rate}, momentum=0.9)"
        for rate in RATES[1:]
        for rho in (0.2, 0.5, 1.0)
      ],
    ),
    "baseline": grid(
      *(TASK, top_eigenvalue),
      optimizer=[f"sgd({rate}, momentum=0.9)" for rate in RATES],
      epochs=LENGTHS,
    ),
    "null": grid(
      *(TASK, top_eigenvalue),
      optimizer=[f"sam(rho=0) | sgd({rate}, momentum=0.9)" for rate in RATES],
      epochs=LENGTHS,
    ),
  },
  claims=(
    Claim("SAM is more accurate on clean test data than SGD", "test/accuracy", "higher"),
    Claim("SAM finds a smaller largest eigenvalue than SGD", "train/top eigenvalue", "lower"),
  ),
  tuned_by="validation/accuracy",
  tuned="higher",
)
