"""Rows of `optimizers/`."""

from . import OptimizerRow

ROWS = [
  OptimizerRow(
    "sam(rho=0.05) | sgd(0.1)",
    evaluations=1,
    limits=(("sam(rho=0)", "identity()"),),
    bad={
      "sam(rho=-1)": "rho must be at least 0, got -1",
      "sam(eps=-1)": "eps must be at least 0, got -1",
      "sam(slices=0)": "slices must be a whole number of at least 1, got 0",
      "sam(sync='data')": "sync must be among axis_name=None, got ('data',)",
      "sam(axis_name='data', sync=True)": "sync must be among axis_name='data', got (True,)",
      "sam(axis_name='data', sync='data', slices=2)": "sync must be () where slices=2",
    },
  ),
  OptimizerRow(
    "sam(rho=0.05, slices=2) | sgd(0.1)",
    evaluations=4,
    workers="matter",
    why="slices of a worker's part are not slices of the batch",
    limits=(("sam(rho=0, slices=2)", "identity()"), ("sam(slices=1)", "sam()")),
  ),
  OptimizerRow(
    "optimistic_omd(0.1, mirror=euclidean())",
    limits=(("optimistic_omd(0)", "set_to_zero()"),),
    bad={
      "optimistic_omd(-1)": "learning_rate must be at least 0, got -1",
      "optimistic_omd(0.1, mirror=1)": "mirror must be a MirrorMap, got 1",
    },
  ),
  OptimizerRow("optimistic_omd(0.1, mirror=entropy())", params="simplex"),
  OptimizerRow(
    "egn(0.5)",
    evaluations=1,
    workers="matter",
    why="each worker's curvature is that of its own outputs",
    limits=(("egn(0)", "set_to_zero()"),),
    bad={
      "egn(-1)": "learning_rate must be at least 0, got -1",
      "egn(1.0, damping=0)": "damping must be above 0, got 0",
    },
  ),
  OptimizerRow(
    "ef21(top_k(0.1)) | sgd(0.1)",
    limits=(
      ("ef21(top_k(1.0))", "identity()"),
      ("ef21(top_k(1000), init='compressed')", "identity()"),
    ),
    bad={
      "ef21(0.1)": "compressor must be a Compressor, got 0.1",
      "ef21(top_k(2.0))": "k must be a fraction in (0, 1] or a whole number above 0, got 2.0",
      "ef21(top_k(1), init='zero')": "init must be one of ['compressed', 'full'], got 'zero'",
    },
  ),
  OptimizerRow("ef21(top_k(2), init='compressed') | sgd(0.1)"),
]
