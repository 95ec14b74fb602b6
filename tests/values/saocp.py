"""Radii of SF-OGD and SAOCP before each of 300 scores, which quadruple halfway.

From github.com/salesforce/online_conformal, commit fa75bfa6baa0, online_conformal/ogd.py and
saocp.py. The forecasting library that it imports is no part of them: an empty one stands in.
Losses are rounded to twelve decimals, since the weights hang by the sign of their differences,
and a newborn expert's loss is the mixture's but for rounding.
"""

import sys
from unittest import mock

import numpy as np
import pandas as pd
from _official import prepare, save

SCORES, SCALE, COVERAGE = 300, 6.0, 0.85


def radii(predictor, scores):
  """What a predictor gives before it sees each score."""
  given = []
  for score in scores:
    given.append(predictor.predict(1)[1])
    predictor.update(pd.Series([score]), pd.Series([0.0]), 1)
  return given


def main():
  prepare()
  for name in (
    *("merlion", "merlion.models", "merlion.models.ensemble", "merlion.models.ensemble.forecast"),
    *("merlion.models.forecast", "merlion.models.forecast.base", "merlion.transform"),
    *("merlion.models.forecast.sklearn_base", "merlion.models.utils", "merlion.transform.base"),
    *("merlion.models.utils.rolling_window_dataset", "merlion.utils"),
  ):
    sys.modules[name] = mock.MagicMock()
  from online_conformal import saocp
  from online_conformal.ogd import ScaleFreeOGD
  from online_conformal.saocp import SAOCP

  exact = saocp.pinball_loss
  saocp.pinball_loss = lambda *arguments: np.round(exact(*arguments), 12)
  rng = np.random.default_rng(0)
  scores = np.abs(rng.normal(size=SCORES)) * np.where(np.arange(SCORES) < SCORES // 2, 1, 4)
  hyper = {"model": None, "train_data": None, "coverage": COVERAGE, "max_scale": SCALE}
  runs = {
    "sf_ogd": radii(ScaleFreeOGD(**hyper), scores),
    "saocp": radii(SAOCP(**hyper), scores),
    "short": radii(SAOCP(**hyper, lifetime=3), scores),
  }
  save(__file__, {"scale": SCALE, "coverage": COVERAGE, "scores": scores, **runs})


main()
