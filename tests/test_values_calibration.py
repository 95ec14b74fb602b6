"""Values of calibrators: official code over hundreds of scores, long runs, odd streams."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from objectives.calibration.saocp import saocp, sf_ogd
from tests import values
from tests.properties import assert_close, types_of

BOTH = {"sf_ogd": sf_ogd(4.0), "saocp": saocp(4.0)}


def radii(calibrator, scores, state=None):
  """The radius before each score, and the last state."""

  def step(state, score):
    return calibrator.update(state, score), calibrator.predict(state)

  start = calibrator.init() if state is None else state
  last, seen = jax.jit(lambda s, x: jax.lax.scan(step, s, x))(start, jnp.asarray(scores))
  return seen, last


def scores(size, seed=0):
  return np.abs(np.random.default_rng(seed).normal(size=size)).astype(np.float32)


def official(make, run):
  golden = values.load("saocp")
  with jax.enable_x64(True):
    found, _ = radii(make(golden["scale"], coverage=golden["coverage"]), golden["scores"])
  assert np.ptp(golden[run]) > 3
  np.testing.assert_allclose(found, golden[run], atol=1e-9)


def test_sf_ogd_is_the_official_one_for_300_scores():
  official(sf_ogd, "sf_ogd")


@pytest.mark.parametrize(("lifetime", "run"), [(8, "saocp"), (3, "short")])
def test_saocp_is_the_official_one_for_300_scores(lifetime, run):
  official(functools.partial(saocp, lifetime=lifetime), run)


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_sf_ogd_and_saocp_cover_as_much_as_they_should_in_the_long_run(name, scale):
  stream = scale * scores(3000)
  found, _ = radii({"sf_ogd": sf_ogd, "saocp": saocp}[name](4 * scale, coverage=0.8), stream)
  assert abs(np.mean(stream[500:] <= found[500:]) - 0.8) < 0.03


@pytest.mark.parametrize("lifetime", [1, 2, 3, 8])
def test_saocp_has_a_slot_for_every_expert_that_is_alive(lifetime):
  calibrator = saocp(4.0, lifetime=lifetime)
  last = radii(calibrator, scores(700))[1]
  born = np.asarray(last.born)
  for t in range(1, 701):
    twos = (t & -t).bit_length() - 1
    if 700 - t <= lifetime * 2**twos:
      assert np.sum(born == t) == 1, t


@pytest.mark.parametrize("name", BOTH)
def test_calibrators_are_scans_over_states_of_one_type(name):
  calibrator, stream = BOTH[name], scores(12)
  found, last = radii(calibrator, stream)
  assert types_of(last) == types_of(calibrator.init())
  state, update = calibrator.init(), jax.jit(calibrator.update)
  for score, expected in zip(stream, found, strict=True):
    assert_close(calibrator.predict(state), expected)
    state = update(state, score)
  assert_close(state, last)


@pytest.mark.parametrize("name", BOTH)
def test_calibrators_follow_many_streams_at_once(name):
  streams = np.stack([scores(20, seed) for seed in range(3)])
  found = jax.vmap(lambda stream: radii(BOTH[name], stream)[0])(jnp.asarray(streams))
  assert_close(found, np.stack([radii(BOTH[name], stream)[0] for stream in streams]))


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("odd", [np.nan, np.inf])
def test_calibrators_leave_out_what_is_not_finite(name, odd):
  stream = scores(20)
  with_odd = np.insert(stream, [4, 11, 11], odd)
  assert_close(radii(BOTH[name], with_odd)[1], radii(BOTH[name], stream)[1])


@pytest.mark.parametrize("name", BOTH)
def test_calibrators_stay_finite_in_late_rounds_and_at_odd_sizes(name):
  stream = np.float32([0, 0, 1e30, 1e-30, 0, 3, 1e20, 0])
  state = BOTH[name].init()
  if name == "saocp":
    state = state._replace(count=jnp.array(2**31 - 12, jnp.int32))
  found, last = radii(BOTH[name], stream, state)
  assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves((found, last)))
  assert np.all(np.asarray(found) >= 0)


@pytest.mark.parametrize(
  ("make", "message"),
  [
    (lambda: sf_ogd(0), "scale must be above 0, got 0"),
    (lambda: sf_ogd(1.0, coverage=1), "coverage must be in [0, 1), got 1"),
    (lambda: saocp(-1), "scale must be above 0, got -1"),
    (lambda: saocp(1.0, coverage=0), "coverage must be above 0, got 0"),
    (lambda: saocp(1.0, lifetime=0), "lifetime must be a whole number of at least 1, got 0"),
  ],
)
def test_calibrators_refuse(make, message):
  with pytest.raises(ValueError) as error:
    make()
  assert message in str(error.value)
