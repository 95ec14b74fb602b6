"""[217] Perturbing the tenth of the weights with the most Fisher information beats SAM."""

from jaxrl.trouble import Options
from scripts.evidence._experiment import Arm, Claim, Experiment
from scripts.evidence._training import grid
from scripts.train import Config

TASK = Config(
  dataset="digits",
  model="mlp",
  trouble=Options(train_size=200, label_noise=0.2),
  batch_size=20,
  epochs=40,
)


def arm(mask: str, radii: tuple[float, ...]) -> Arm:
  """SAM with a mask, at each radius."""
  return grid(TASK, optimizer=[f"sam(rho={rho}{mask}) | adam(1e-3)" for rho in radii])


EXPERIMENT = Experiment(
  methods=("fisher_mask",),
  family="sharpness",
  setup=(
    "200 digits, 20 % of them with a wrong label, an MLP of two layers of 128 from scratch (the "
    "paper fine-tunes language models on few examples), 40 epochs of Adam at 1e-3 in batches of "
    "20. The mask keeps a tenth of the weights, chosen anew every 20 steps. The null keeps none: "
    "it perturbs the biases alone."
  ),
  arms={
    "method": arm(", mask=fisher_mask(every=20)", (0.2, 0.5, 1.0, 2.0)),
    "baseline": arm("", (0.1, 0.2, 0.5, 1.0)),
    "null": arm(", mask=fisher_mask(keep=0, every=20)", (0.2, 0.5, 1.0, 2.0)),
  },
  claims=(Claim("Fisher SAM is more accurate than SAM", "test/accuracy", "higher"),),
  tuned_by="validation/accuracy",
  tuned="higher",
)
