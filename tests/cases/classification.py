"""Rows of `objectives/classification/`."""

from . import ObjectiveRow

ROWS = [
  ObjectiveRow("cross_entropy()"),
  ObjectiveRow(
    "label_smoothing(alpha=0.2)",
    limits=(("label_smoothing(alpha=0)", "cross_entropy()"),),
    bad={"label_smoothing(alpha=2)": "alpha must be in [0, 1], got 2"},
  ),
  ObjectiveRow("stablemax()"),
  ObjectiveRow(
    "maxsup(alpha=0.1)",
    limits=(("maxsup(alpha=0)", "cross_entropy()"),),
    bad={"maxsup(alpha=-1)": "alpha must be at least 0, got -1"},
  ),
  ObjectiveRow(
    "elr(beta=0.7, lam=3)",
    limits=(
      ("elr(lam=0)", "cross_entropy()"),
      ("elr(beta=1)", "cross_entropy()"),
    ),
    bad={
      "elr(num_examples=0)": "num_examples must be a whole number of at least 1, got 0",
      "elr(num_classes=2.5)": "num_classes must be a whole number of at least 1, got 2.5",
      "elr(beta=1.5)": "beta must be in [0, 1], got 1.5",
      "elr(lam=-1)": "lam must be at least 0, got -1",
      "elr(clip=0)": "clip must be above 0, got 0",
      "elr(clip=0.5)": "clip must be in [0, 0.5), got 0.5",
    },
  ),
  ObjectiveRow(
    "saf(lag=1, start_epoch=0)",
    limits=(
      ("saf(lam=0, lag=1, start_epoch=0)", "cross_entropy()"),
      ("saf(lag=1, start_epoch=0, end_epoch=1)", "cross_entropy()"),
    ),
    bad={
      "saf(num_examples=0)": "num_examples must be a whole number of at least 1, got 0",
      "saf(num_classes=0)": "num_classes must be a whole number of at least 1, got 0",
      "saf(lam=-1)": "lam must be at least 0, got -1",
      "saf(temperature=0)": "temperature must be above 0, got 0",
      "saf(lag=0)": "lag must be a whole number of at least 1, got 0",
      "saf(lag=3, start_epoch=1)": "start_epoch must be a whole number of at least 2, got 1",
      "saf(end_epoch=-1)": "end_epoch must be a whole number of at least 0, got -1",
    },
  ),
  ObjectiveRow(
    "mesa(start_epoch=1)",
    limits=(
      ("mesa(lam=0, start_epoch=1)", "cross_entropy()"),
      ("mesa(start_epoch=3)", "cross_entropy()"),
    ),
    bad={
      "mesa(lam=-1)": "lam must be at least 0, got -1",
      "mesa(temperature=0)": "temperature must be above 0, got 0",
      "mesa(decay=2)": "decay must be in [0, 1], got 2",
      "mesa(start_epoch=-1)": "start_epoch must be a whole number of at least 0, got -1",
      "mesa(end_epoch=-1)": "end_epoch must be a whole number of at least 0, got -1",
    },
  ),
]
