"""[45] StableMax and perpGrad generalise without weight decay where softmax cross-entropy stops."""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxrl import models, synthetic
from objectives.classification.cross_entropy import cross_entropy
from objectives.classification.stablemax import stablemax
from optimizers.perp_grad import perp_grad
from scripts.evidence._experiment import Arm, Claim, Experiment, Measure

MODULUS, TRAIN_SHARE = 23, 0.7
EPOCHS, POINTS = 2000, 50
RATES = (1e-3, 3e-3, 1e-2, 3e-2)
NETWORK = models.from_flax(models.Mlp(MODULUS, (128, 128)))

Loss: TypeAlias = Callable[[jax.Array, jax.Array], jax.Array]
Split: TypeAlias = dict[str, jax.Array]


def perp_noise() -> optax.GradientTransformation:
  """perpGrad with random tensors, drawn once, where it has the weights."""
  projection = perp_grad()

  def init(params):
    return optax.tree.random_like(jax.random.key(0), params, jax.random.normal)

  def update(updates, state, params=None):
    del params
    return projection.update(updates, optax.EmptyState(), state)[0], state

  return optax.GradientTransformation(init, update)


def logits(params: Any, split: Split) -> jax.Array:
  """The network's outputs."""
  return NETWORK.apply(params, {}, split["inputs"], jax.random.key(0), True)[0]


def accuracy(params: Any, split: Split) -> jax.Array:
  """The share of the sums that are right."""
  return jnp.mean(jnp.argmax(logits(params, split), axis=-1) == split["labels"])


def trained(loss: Loss, element: optax.GradientTransformation, rate: float) -> Measure:
  """The network during and after full-batch Adam, for each seed's weights and split."""
  optimizer = optax.chain(element, optax.adam(rate, b2=0.99))

  def losses(params, split):
    return loss(logits(params, split), split["labels"])

  def epoch(carry, train):
    params, state = carry
    gradient = jax.grad(lambda point: jnp.mean(losses(point, train)))(params)
    updates, state = optimizer.update(gradient, state, params)
    return optax.apply_updates(params, updates), state

  @jax.jit
  @jax.vmap
  def run(seed, splits):
    train = splits["train"]

    def epochs(carry, _):
      carry = jax.lax.fori_loop(0, EPOCHS // POINTS, lambda _, c: epoch(c, train), carry)
      without_loss = jnp.mean(losses(carry[0], train) == 0)
      return carry, (accuracy(carry[0], splits["test"]), without_loss)

    params, _ = NETWORK.init(jax.random.key(seed), train["inputs"])
    carry = params, optimizer.init(params)
    (params, _), (test, without_loss) = jax.lax.scan(epochs, carry, length=POINTS)
    return {
      "train/accuracy": accuracy(params, train),
      "validation/accuracy": accuracy(params, splits["validation"]),
      "test/accuracy": test[-1],
      "curve/test accuracy": test,
      "curve/share of examples without loss": without_loss,
    }

  return lambda seeds: run(jnp.asarray(seeds), splits_of(seeds))


def splits_of(seeds: Sequence[int]) -> dict[str, Split]:
  """Each seed's own splits, stacked."""
  each = [
    dict(synthetic.modular_arithmetic(MODULUS, train_share=TRAIN_SHARE, seed=seed).splits)
    for seed in seeds
  ]
  return jax.tree.map(lambda *columns: np.stack(columns), *each)


def arm(loss: Loss, element: optax.GradientTransformation, name: str) -> Arm:
  """A setting for each learning rate."""
  return {f"{name}, adam({rate})": trained(loss, element, rate) for rate in RATES}


EXPERIMENT = Experiment(
  methods=("stablemax", "perp_grad"),
  family="sharpness",
  setup=(
    "Addition modulo 23, 70 % of the 529 sums for training, each seed with a split of its own; an "
    "MLP of two layers of 128; 2000 epochs of full-batch Adam (b2 0.99) in float32 without weight "
    "decay. The null is softmax cross-entropy with a gradient perpendicular to random tensors in "
    "place of the weights."
  ),
  arms={
    "baseline": arm(cross_entropy, optax.identity(), "cross_entropy"),
    "stablemax": arm(stablemax, optax.identity(), "stablemax"),
    "perp_grad": arm(cross_entropy, perp_grad(), "cross_entropy, perp_grad"),
    "null": arm(cross_entropy, perp_noise(), "cross_entropy, perp_noise"),
  },
  claims=(
    Claim(
      "StableMax generalises: more than 50 points above softmax cross-entropy",
      *("test/accuracy", "higher", 0.5),
      method="stablemax",
    ),
    Claim(
      "perpGrad generalises: more than 50 points above softmax cross-entropy",
      *("test/accuracy", "higher", 0.5),
      method="perp_grad",
    ),
  ),
  tuned_by="validation/accuracy",
  tuned="higher",
  seeds=tuple(range(5)),
  tuning_seeds=(100, 101),
)
