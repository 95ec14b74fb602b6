"""[181] GAM lowers the largest gradient norm nearby, and with it the curvature, below SAM's."""

from jaxrl.trouble import Options
from scripts.evidence._curvature import largest_gradient_norm, top_eigenvalue
from scripts.evidence._experiment import Claim, Experiment
from scripts.evidence._training import Trained, grid
from scripts.train import Config

TASK = Config(dataset="digits", model="mlp", trouble=Options(label_noise=0.4), epochs=40)
RADIUS = 0.2
RADII = (0.3, 0.5, 0.7)


def flatness(trained: Trained) -> dict[str, float]:
  """The largest gradient norm in the ball of GAM's default radius, and the top eigenvalue."""
  return {**largest_gradient_norm(trained, RADIUS), **top_eigenvalue(trained)}


def with_sgd(element: str) -> str:
  """The element in front of SGD."""
  return f"{element} | sgd(0.05, momentum=0.9)"


EXPERIMENT = Experiment(
  methods=("gam",),
  family="sharpness",
  setup=(
    "Digits with 40 % symmetric label noise in training, an MLP of two layers of 128, SGD with "
    "learning rate 0.05 and momentum 0.9. SAM may train for 80 epochs, as long as 40 of GAM take."
    " The largest gradient norm is that at the end of one step of length 0.2. The null is "
    "`gam(rho=0, rho_prime=0, gamma=0)`, which is SGD."
  ),
  arms={
    "method": grid(
      *(TASK, flatness),
      optimizer=[
        with_sgd(f"gam(rho={rho}, rho_prime={rho_prime})")
        for rho in (0.2, 0.5)
        for rho_prime in RADII
      ],
    ),
    "baseline": grid(
      *(TASK, flatness),
      optimizer=[with_sgd(f"sam(rho={rho})") for rho in RADII],
      epochs=(40, 80),
    ),
    "null": grid(
      *(TASK, flatness),
      optimizer=[
        f"gam(rho=0, rho_prime=0, gamma=0) | sgd({rate}, momentum=0.9)"
        for rate in (0.02, 0.05, 0.1)
      ],
      epochs=(40, 80),
    ),
  },
  claims=(
    Claim(
      "The largest gradient norm in a ball of 0.2 is lower than SAM's",
      *("train/largest gradient norm nearby", "lower"),
    ),
    Claim("The top eigenvalue is lower than SAM's", "train/top eigenvalue", "lower"),
  ),
  tuned_by="validation/accuracy",
  tuned="higher",
)
