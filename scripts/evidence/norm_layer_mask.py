"""[258] SAM needs to perturb normalisation layers only."""

from jaxrl.trouble import Options
from scripts.evidence._experiment import Arm, Claim, Experiment
from scripts.evidence._training import grid
from scripts.train import Config

TASK = Config(dataset="digits", model="cnn", trouble=Options(train_size=400), epochs=12)
ALL_BUT_NORMS = "^(?!.*[Nn]orm)"


def arm(mask: str, radii: tuple[float, ...]) -> Arm:
  """SAM with a mask, at each radius."""
  optimizers = [f"sam(rho={rho}{mask}) | sgd(0.1, momentum=0.9)" for rho in radii]
  return grid(TASK, optimizer=optimizers)


EXPERIMENT = Experiment(
  methods=("norm_layer_mask",),
  family="sharpness",
  setup=(
    "400 digits, a network of four convolutions with BatchNorm, whose scales and biases are 0.6 % "
    "of its parameters, 12 epochs of SGD with learning rate 0.1 and momentum 0.9. The null "
    "perturbs everything but the normalisation layers."
  ),
  arms={
    "method": arm(", mask=norm_layer_mask()", (0.1, 0.3, 1.0, 3.0)),
    "baseline": arm("", (0.03, 0.1, 0.3, 1.0)),
    "null": arm(f", mask=norm_layer_mask('{ALL_BUT_NORMS}')", (0.03, 0.1, 0.3, 1.0)),
  },
  claims=(
    Claim(
      "SAM on the normalisation layers alone is more accurate than on all parameters",
      *("test/accuracy", "higher"),
    ),
  ),
  tuned_by="validation/accuracy",
  tuned="higher",
  tuning_seeds=(100, 101, 102),
)
