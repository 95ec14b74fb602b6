"""Rows of `objectives/reweighting/`."""

from . import ObjectiveRow

ROWS = [
  ObjectiveRow(
    "cross_entropy() | group_dro(eta=0.1)",
    batch="whole",
    why="each update moves the weights of the groups",
    bad={
      "cross_entropy() | group_dro(num_groups=0)": "num_groups must be a whole number",
      "cross_entropy() | group_dro(eta=-1)": "eta must be at least 0, got -1",
      "cross_entropy() | group_dro(adjustment=-1)": "adjustment must be at least 0, got -1",
      "cross_entropy() | group_dro(adjustment=1)": "adjustment=1 needs group_counts",
      "cross_entropy() | group_dro(group_counts=[1, 0, 1])": "must be 3 positive numbers",
    },
  ),
  ObjectiveRow(
    "cross_entropy() | group_dro(eta=1.0, adjustment=2.0, group_counts=[9, 1, 4], normalize=True)",
    batch="whole",
    why="each update moves the weights of the groups",
  ),
  ObjectiveRow(
    "squared_error() | z_error(tau=1.0)",
    batch="whole",
    why="examples are compared with the mean of the batch",
    limits=(("squared_error() | z_error(tau=1e9)", "squared_error()"),),
    bad={
      "squared_error() | z_error(tau=0)": "tau must be above 0, got 0",
      "squared_error() | z_error(eps=-1)": "eps must be at least 0, got -1",
      "squared_error() | z_error(statistic='median')": "statistic must be one of",
    },
  ),
  ObjectiveRow(
    "cross_entropy() | z_error(tau=0.7, statistic='prob')",
    batch="whole",
    why="examples are compared with the mean of their class in the batch",
    limits=(("cross_entropy() | z_error(tau=1e9, statistic='logit')", "cross_entropy()"),),
  ),
]
