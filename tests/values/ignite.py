"""Twenty-five steps of IGNITE, SGD behind it, of a small regression.

From github.com/cuong-dm/IGNITE, commit c7026148c927, the trainer of its gradient ascent. It adds
noise of size zero in float32, which is left out so that it runs in float64. It needs an
environment of its own: torch, tensorflow-cpu 2.17.1, tensorflow-probability 0.24.0, tf_keras
2.17.0.
"""

import importlib.util
import os
import sys
from pathlib import Path

import numpy as np
from _official import prepare, save

os.environ["TF_USE_LEGACY_KERAS"] = "1"
STEPS, LEARNING_RATE = 25, 0.1
RHO, R, LAM, ETA, EPSILON = 0.1, 0.2, 0.5, 0.3, 0.2
SIZE, FEATURES, HIDDEN = 8, 4, 5


def official():
  """The trainer's module alone: the package around it wants the benchmark's tasks."""
  path = Path(sys.argv[1], "design_baselines/gradient_ascent_IGNITE/trainers.py")
  spec = importlib.util.spec_from_file_location("trainers", path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  module.cont_noise = lambda x, std: x
  return module


def surrogate(tf, tfpd, start):
  """A normal distribution around a hidden layer of tanh."""

  class Surrogate(tf.Module):
    def __init__(self):
      super().__init__()
      self.params = {name: tf.Variable(value) for name, value in start.items()}

    @property
    def trainable_variables(self):
      return list(self.params.values())  # as Keras gives them: the trainer changes its gradients

    def get_distribution(self, x, training):
      hidden = tf.tanh(x @ self.params["first"] + self.params["bias"])
      return tfpd.Normal(hidden @ self.params["second"], tf.ones([], tf.float64))

  return Surrogate()


def main():
  prepare()
  trainers = official()
  tf = trainers.tf
  rng = np.random.default_rng(0)
  shapes = {"first": (FEATURES, HIDDEN), "bias": (HIDDEN,), "second": (HIDDEN, 1)}
  start = {name: rng.normal(size=shape) for name, shape in shapes.items()}
  inputs = rng.normal(size=(STEPS, SIZE, FEATURES))
  targets = rng.normal(size=(STEPS, SIZE, 1))
  model = surrogate(tf, trainers.tfpd, start)
  trainer = trainers.MaximumLikelihood(model, tf.keras.optimizers.SGD, LEARNING_RATE)
  lam, weights = tf.constant(LAM, tf.float64), tf.ones((SIZE, 1), tf.float64)
  multipliers = []
  for x, y in zip(inputs, targets, strict=True):
    _, lam = trainer.train_step(
      tf.constant(x), tf.constant(y), weights, SIZE, ETA, EPSILON, lam, RHO, R
    )
    multipliers.append(float(lam))
  hyper = {"rho": RHO, "r": R, "lam": LAM, "eta": ETA, "epsilon": EPSILON}
  data = {"learning_rate": LEARNING_RATE, "inputs": inputs, "targets": targets, "start": start}
  end = {name: value.numpy() for name, value in model.params.items()}
  save(__file__, {**hyper, **data, "multipliers": multipliers, "end": end})


main()
