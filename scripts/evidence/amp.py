"""[321] AMP finds flatter minima that generalise better than SGD's, here under wrong labels."""

from jaxrl.trouble import Options
from scripts.evidence._curvature import mean_rise
from scripts.evidence._experiment import Claim, Experiment
from scripts.evidence._training import Trained, grid
from scripts.train import Config

TASK = Config(dataset="digits", model="mlp", trouble=Options(label_noise=0.4), epochs=40)
NORM = 0.5
RATES, LENGTHS = (0.005, 0.01, 0.02), (40, 80)
AMP_RATES, RADII = (0.02, 0.05), (0.2, 0.5, 1.0)


def flatness(trained: Trained) -> dict[str, float]:
  """The mean rise of the training loss at a distance of AMP's default radius."""
  return mean_rise(trained, NORM)


EXPERIMENT = Experiment(
  methods=("amp",),
  family="sharpness",
  setup=(
    "Digits with 40 % symmetric label noise in training, an MLP of two layers of 128, SGD with "
    "momentum 0.9. SGD may train for 80 epochs, as long as 40 of AMP take. The rise is that of "
    "the training loss under Gaussian perturbations of norm 0.5, the mean of 50. The null is "
    "`amp(epsilon=0)`."
  ),
  arms={
    "method": grid(
      *(TASK, flatness),
      optimizer=[
        f"amp(epsilon={epsilon}) | sgd({rate}, momentum=0.9)"
        for rate in AMP_RATES
        for epsilon in RADII
      ],
    ),
    "baseline": grid(
      *(TASK, flatness),
      optimizer=[f"sgd({rate}, momentum=0.9)" for rate in RATES],
      epochs=LENGTHS,
    ),
    "null": grid(
      *(TASK, flatness),
      optimizer=[f"amp(epsilon=0) | sgd({rate}, momentum=0.9)" for rate in RATES],
      epochs=LENGTHS,
    ),
  },
  claims=(
    Claim("AMP is more accurate on clean test data than SGD", "test/accuracy", "higher"),
    Claim(
      "The training loss rises less at a distance of 0.5 than after SGD",
      *("train/mean rise nearby", "lower"),
    ),
  ),
  tuned_by="validation/accuracy",
  tuned="higher",
)
