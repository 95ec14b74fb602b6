"""scripts.evidence._curvature on losses whose curvature is known."""

import jax.numpy as jnp
import numpy as np

from jaxrl.trouble import Options
from scripts.evidence import _curvature as curvature
from scripts.evidence._training import trained
from scripts.train import Config
from tests import tiers

pytestmark = tiers.unless_changed("scripts/evidence/_curvature.py")

SCALES = np.array([1.0, -3.0, 8.0])
LABELS = jnp.array([0, 1, 1, 2])


def quadratics(params):
  """An example for each label, its Hessian label + 1 times the scales."""
  return (LABELS + 1) * 0.5 * jnp.sum(SCALES * params**2)


def test_the_largest_gradient_norm_is_that_after_a_step_along_its_gradient():
  w, scales = np.array([1.0, 2.0, -1.0]), 2.0 * SCALES
  uphill = scales**2 * w
  expected = np.linalg.norm(scales * (w + 0.3 * uphill / np.linalg.norm(uphill)))
  found = curvature._largest_gradient_norm(quadratics, jnp.asarray(w), LABELS, 0.3)
  np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_the_mean_rise_is_that_at_the_given_norm():
  found = curvature._mean_rise(quadratics, jnp.zeros(3), LABELS, 0.5)
  spread = np.sqrt(2 * np.sum(SCALES**2) / 50) * 0.25 / 3  # of a mean of 50, Hessian 2 SCALES
  assert abs(found - 0.25 * SCALES.mean()) < 3 * spread


def test_the_smallest_eigenvalue_is_the_mean_over_the_named_classes():
  found = curvature._smallest_eigenvalue(quadratics, jnp.ones(3), LABELS, (1, 2))
  np.testing.assert_allclose(found, np.mean([2 * -3.0, 3 * -3.0]), rtol=1e-4)


def test_statistics_are_measured_of_a_trained_network_and_compiled_once():
  task = Config(model="mlp", optimizer="sgd(0.1)", epochs=1, trouble=Options(train_size=64))
  curvature._compiled.cache_clear()
  values = [trained(task, curvature.top_eigenvalue)((seed,)) for seed in (0, 1)]
  assert all(value["train/top eigenvalue"] > 0 for value in values)
  assert curvature._compiled.cache_info().misses == 1
