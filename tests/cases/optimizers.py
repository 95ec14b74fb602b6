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
      "sam(adaptive=True, eta=-1)": "eta must be at least 0, got -1",
      "sam(normalize='l1')": "normalize must be one of ['given', 'none', 'own'], got 'l1'",
      "sam(ascent_steps=0)": "ascent_steps must be a whole number of at least 1, got 0",
      "sam(mask=0.1)": "mask must be a Mask, got 0.1",
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
    "gam(rho=0.2) | sgd(0.1)",
    evaluations=3,
    limits=(
      ("gam(rho=0, rho_prime=0)", "identity()"),
      ("gam(rho_prime=0.05, alpha=1, gamma=0)", "sam(rho=0.05)"),
      ("gam(rho=0, rho_prime=0.05, gamma=0)", "sam(rho=0.05)"),
      ("gam(beta=1)", "gam(beta=1, h_minus='paper')"),
    ),
    bad={
      "gam(rho=-1)": "rho must be at least 0, got -1",
      "gam(rho_prime=-1)": "rho_prime must be at least 0, got -1",
      "gam(alpha=2)": "alpha must be in [0, 1], got 2",
      "gam(beta=-1)": "beta must be in [0, 1], got -1",
      "gam(gamma=-1)": "gamma must be at least 0, got -1",
      "gam(eps=-1)": "eps must be at least 0, got -1",
      "gam(h_minus='g0')": "h_minus must be one of ['code', 'paper'], got 'g0'",
    },
  ),
  OptimizerRow("gam(adaptive=True, h_minus='paper') | sgd(0.1)", evaluations=3),
  OptimizerRow(
    "gam_exact(rho=0.2, alpha=0.5) | sgd(0.1)",
    evaluations=3,
    limits=(
      ("gam_exact(rho=0, alpha=1)", "identity()"),
      ("gam_exact(rho=1, alpha=0)", "identity()"),
    ),
    bad={
      "gam_exact(rho=-1, alpha=1)": "rho must be at least 0, got -1",
      "gam_exact(rho=1, alpha=-1)": "alpha must be at least 0, got -1",
      "gam_exact(rho=1, alpha=1, eps=-1)": "eps must be at least 0, got -1",
    },
  ),
  OptimizerRow(
    "gam_sam(rho=0.2, alpha=0.5) | sgd(0.1)",
    evaluations=4,
    limits=(
      ("gam_sam(rho=1, alpha=0)", "sam(rho=0.05)"),
      ("gam_sam(rho=0.2, alpha=0.5, rho_sam=0)", "gam_exact(rho=0.2, alpha=0.5)"),
    ),
    bad={"gam_sam(rho=1, alpha=1, rho_sam=-1)": "rho_sam must be at least 0, got -1"},
  ),
  OptimizerRow(
    "sam(rho=0.5, adaptive=True, ascent_steps=2) | sgd(0.1)",
    evaluations=2,
    limits=(
      ("sam(rho=0, adaptive=True)", "identity()"),
      ("sam(rho=0, normalize='none')", "identity()"),
    ),
  ),
  OptimizerRow(
    "sam(rho=0.2, mask=norm_layer_mask('bias')) | sgd(0.1)",
    evaluations=1,
    limits=(("sam(mask=norm_layer_mask('.'))", "sam()"),),
    bad={"sam(mask=norm_layer_mask('('))": "where must be a regular expression, got '('"},
    xfail={"odd_trees": "without a parameter to perturb the mask raises"},
  ),
  OptimizerRow(
    "sam(rho=0.2, mask=fisher_mask(0.3, every=2)) | sgd(0.1)",
    evaluations=1,
    limits=(
      ("sam(mask=fisher_mask(1))", "sam()"),
      ("sam(mask=fisher_mask(0, exclude='^$'))", "identity()"),
    ),
    bad={
      "sam(mask=fisher_mask(2))": "keep must be in [0, 1], got 2",
      "sam(mask=fisher_mask(every=0.5))": "every must be a whole number of at least 1, got 0.5",
      "sam(mask=fisher_mask(exclude='('))": "exclude must be a regular expression, got '('",
    },
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
      "egn(1.0, momentum=1)": "momentum must be in [0, 1), got 1",
      "egn(1.0, line_search='wolfe')": "line_search must be one of ['conservative', 'goldstein',",
      "egn(1.0, linear_schedule(1.0, 0.1, 9), adaptive_damping=True)": "damping must be a number",
      "egn(1.0, damping_up=0.9)": "damping_up must be at least 1, got 0.9",
      "egn(1.0, damping_down=2)": "damping_down must be in [0, 1], got 2",
      "egn(1.0, max_system=-1)": "max_system must be a whole number of at least 0, got -1",
      "egn(1.0, cg_steps=0)": "cg_steps must be a whole number of at least 1, got 0",
    },
  ),
  OptimizerRow(
    "egn(1.0, momentum=0.5, line_search='increase', adaptive_damping=True, max_system=8)",
    evaluations=2,
    workers="matter",
    why="each worker's curvature is that of its own outputs",
    limits=(
      ("egn(0.5, momentum=0.5, max_system=16)", "egn(0.5, momentum=0.5, max_system=15)"),
      ("egn(0.01, line_search='increase')", "egn(0.01)"),
    ),
  ),
  OptimizerRow(
    "fosi(sgd(0.1), k=2, every=2, warmup=1, alpha=0.1, order=20)",
    evaluations=20,
    limits=(
      ("fosi(sgd(0.1), k=0)", "sgd(0.1)"),
      ("fosi(adam(0.01), k=3, every=9)", "adam(0.01)"),
    ),
    bad={
      "fosi(sgd(0.1), k=-1)": "k must be a whole number of at least 0, got -1",
      "fosi(sgd(0.1), smallest=-1)": "smallest must be a whole number of at least 0, got -1",
      "fosi(sgd(0.1), alpha=-1)": "alpha must be at least 0, got -1",
      "fosi(sgd(0.1), every=0)": "every must be a whole number of at least 1, got 0",
      "fosi(sgd(0.1), warmup=0)": "warmup must be a whole number of at least 1, got 0",
      "fosi(sgd(0.1), momentum='ema')": "momentum must be one of ['average', 'heavy_ball',",
      "fosi(sgd(0.1), decay=1)": "decay must be in [0, 1), got 1",
      "fosi(sgd(0.1), lr_clip=0.5)": "lr_clip must be at least 1, got 0.5",
      "fosi(sgd(0.1), floor=2)": "floor must be in [0, 1], got 2",
      "fosi(sgd(0.1), order=0)": "order must be a whole number of at least 1, got 0",
    },
  ),
  OptimizerRow(
    "oasis(0.01, warm_start=4)",
    evaluations=5,
    limits=(
      ("oasis(0.1, adaptive=False, alpha=1e9)", "sgd(1e-10)"),
      ("oasis(0, adaptive=False)", "set_to_zero()"),
    ),
    bad={
      "oasis(0)": "learning_rate must be above 0, got 0",
      "oasis(-1, adaptive=False)": "learning_rate must be at least 0, got -1",
      "oasis(linear_schedule(1.0, 0.1, 9))": "learning_rate must be a number where it is adaptive",
      "oasis(b1=1)": "b1 must be in [0, 1), got 1",
      "oasis(b2=2)": "b2 must be in [0, 1], got 2",
      "oasis(alpha=0)": "alpha must be above 0, got 0",
      "oasis(samples=0)": "samples must be a whole number of at least 1, got 0",
      "oasis(warm_start=-1)": "warm_start must be a whole number of at least 0, got -1",
    },
  ),
  OptimizerRow(
    "oasis(0.02, adaptive=False, b1=0.9, b2=0.5, warm_start=0, alpha=0.05)", evaluations=1
  ),
  OptimizerRow(
    "newton_cg(cg_steps=3)",
    evaluations=3,
    limits=(
      ("newton_cg(0)", "set_to_zero()"),
      ("newton_cg(1e-3, damping=1e9)", "sgd(1e-12)"),
    ),
    bad={
      "newton_cg(-1)": "learning_rate must be at least 0, got -1",
      "newton_cg(damping=-1)": "damping must be at least 0, got -1",
      "newton_cg(cg_steps=0)": "cg_steps must be a whole number of at least 1, got 0",
      "newton_cg(tolerance=0)": "tolerance must be above 0, got 0",
      "newton_cg(curvature_slices=0)": "curvature_slices must be a whole number of at least 1",
      "newton_cg(armijo=1)": "armijo must be in [0, 1), got 1",
      "newton_cg(backtrack=2)": "backtrack must be in [0, 1), got 2",
      "newton_cg(max_backtracks=-1)": "max_backtracks must be a whole number of at least 0",
    },
  ),
  OptimizerRow(
    "saddle_free_newton(krylov_dim=4)",
    evaluations=9,
    limits=(
      ("saddle_free_newton(0)", "set_to_zero()"),
      ("saddle_free_newton(1e-3, damping=(1e9,))", "sgd(1e-12)"),
    ),
    bad={
      "saddle_free_newton(-1)": "learning_rate must be at least 0, got -1",
      "saddle_free_newton(krylov_dim=0)": "krylov_dim must be a whole number of at least 1, got 0",
      "saddle_free_newton(damping=())": "damping must hold at least one number, got ()",
      "saddle_free_newton(damping=(1.0, 0))": "damping must be above 0, got 0",
    },
  ),
  OptimizerRow(
    "dbf_newton(0.3, alpha=0.5, beta=0.5, line_search=False)",
    evaluations=1,
    limits=(("dbf_newton(0)", "set_to_zero()"),),
    bad={
      "dbf_newton(-1)": "learning_rate must be at least 0, got -1",
      "dbf_newton(alpha=1)": "alpha must be in [0, 1), got 1",
      "dbf_newton(beta=0)": "beta must be above 0, got 0",
      "dbf_newton(max_parameters=0)": "max_parameters must be a whole number of at least 1, got 0",
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
  OptimizerRow(
    "ef21(rand_k(0.5), momentum=0.5, downlink=uniform_rounding(), plus=True) | sgd(0.1)",
    limits=(
      ("ef21(top_k(0.3), momentum=1.0, downlink=no_compression())", "ef21(top_k(0.3))"),
      ("ef21(no_compression(), plus=True)", "identity()"),
    ),
    bad={
      "ef21(top_k(1), momentum=0)": "momentum must be above 0, got 0",
      "ef21(top_k(1), momentum=1.5)": "momentum must be in [0, 1], got 1.5",
      "ef21(top_k(1), participants=0)": "participants must be a whole number of at least 1",
      "ef21(top_k(1), downlink=0.1)": "downlink must be a Compressor, got 0.1",
      "ef21(rand_k(1, key='mine'))": "key must be one of ['own', 'shared'], got 'mine'",
    },
  ),
  OptimizerRow(
    "ef21_w(natural_rounding(random=False), (2.0,)) | sgd(0.1)",
    limits=(("ef21_w(top_k(0.3), (2.0,))", "ef21(top_k(0.3))"),),
    bad={
      "ef21_w(0.1, (1.0,))": "compressor must be a Compressor, got 0.1",
      "ef21_w(top_k(1), ())": "smoothness must hold a number for each worker, got ()",
      "ef21_w(top_k(1), (1.0, -2.0))": "smoothness must be above 0, got -2.0",
      "ef21_w(top_k(1), (1.0,), init='zero')": "init must be one of ['compressed', 'full']",
    },
  ),
  OptimizerRow(
    "sgd(0.1) | ef14(scaled_sign())",
    limits=(
      ("ef14(no_compression())", "identity()"),
      ("sgd(0.1) | ef14(top_k(0.3))", "ef14(top_k(0.3)) | sgd(0.1)"),
    ),
    bad={"ef14(0.1)": "compressor must be a Compressor, got 0.1"},
  ),
  OptimizerRow("ef14(no_compression()) | sgd(0.1)"),
  OptimizerRow(
    "econtrol(low_rank(1), eta=0.1) | sgd(0.1)",
    limits=(
      ("econtrol(no_compression(), eta=0.7)", "identity()"),
      ("econtrol(top_k(0.3), eta=0)", "ef21(top_k(0.3))"),
      ("econtrol(top_k(0.3), eta=0, init='compressed')", "ef21(top_k(0.3), init='compressed')"),
    ),
    bad={
      "econtrol(0.1)": "compressor must be a Compressor, got 0.1",
      "econtrol(top_k(1), eta=-1)": "eta must be in [0, 1], got -1",
      "econtrol(top_k(1), init='zero')": "init must be one of ['compressed', 'full'], got 'zero'",
    },
  ),
  OptimizerRow(
    "perp_grad() | sgd(0.1)",
    bad={
      "perp_grad(eps=-1)": "eps must be at least 0, got -1",
      "perp_grad(tolerance=-1)": "tolerance must be at least 0, got -1",
    },
  ),
  OptimizerRow(
    "coordinate_clip(fraction=0.1) | sgd(0.1)",
    limits=(
      ("coordinate_clip(fraction=0)", "identity()"),
      ("coordinate_clip(fraction=1)", "set_to_zero()"),
    ),
    bad={"coordinate_clip(fraction=1.5)": "fraction must be in [0, 1], got 1.5"},
  ),
  OptimizerRow(
    "adam_coordinate_clip(0.02)",
    limits=(("adam_coordinate_clip(0.02, fraction=0)", "adam(0.02)"),),
    bad={
      "adam_coordinate_clip(-1)": "learning_rate must be at least 0, got -1",
      "adam_coordinate_clip(0.1, fraction=-1)": "fraction must be in [0, 1], got -1",
      "adam_coordinate_clip(0.1, b1=1)": "b1 must be in [0, 1), got 1",
      "adam_coordinate_clip(0.1, b2=1)": "b2 must be in [0, 1), got 1",
      "adam_coordinate_clip(0.1, eps=-1)": "eps must be at least 0, got -1",
    },
  ),
  OptimizerRow(
    "gravity(0.1)",
    limits=(("gravity(0)", "set_to_zero()"),),
    bad={
      "gravity(-1)": "learning_rate must be at least 0, got -1",
      "gravity(alpha=-1)": "alpha must be at least 0, got -1",
      "gravity(beta=1)": "beta must be in [0, 1), got 1",
    },
  ),
  OptimizerRow(
    "amp(epsilon=0.5) | sgd(0.1)",
    evaluations=1,
    limits=(
      ("amp(inner_iter=0)", "clip_by_global_norm(50.0)"),
      ("amp(epsilon=0, clip_norm=0.5)", "clip_by_global_norm(0.5)"),
      ("amp(epsilon=1e9, ball='global')", "amp(epsilon=1e9)"),
    ),
    bad={
      "amp(epsilon=-1)": "epsilon must be at least 0, got -1",
      "amp(inner_lr=-1)": "inner_lr must be at least 0, got -1",
      "amp(inner_iter=-1)": "inner_iter must be a whole number of at least 0, got -1",
      "amp(ball='layer')": "ball must be one of ['global', 'tensor'], got 'layer'",
      "amp(clip_norm=0)": "clip_norm must be above 0, got 0",
    },
  ),
  OptimizerRow("amp(epsilon=0.3, inner_iter=3, ball='global') | sgd(0.1)", evaluations=3),
  OptimizerRow(
    "gradient_regularization(gamma=0.05, eps=0.1) | sgd(0.1)",
    evaluations=1,
    limits=(
      ("gradient_regularization(gamma=0)", "identity()"),
      ("gradient_regularization(gamma=0.05, eps=0.05, norm='norm')", "sam(rho=0.05)"),
    ),
    bad={
      "gradient_regularization(gamma=-1)": "gamma must be at least 0, got -1",
      "gradient_regularization(eps=0)": "eps must be above 0, got 0",
      "gradient_regularization(method='upward')": "method must be one of ['backward', 'central',",
      "gradient_regularization(norm='max')": "norm must be one of ['norm', 'squared'], got 'max'",
    },
  ),
  OptimizerRow(
    "gradient_regularization(gamma=0.05, method='backward', norm='norm') | sgd(0.1)", evaluations=1
  ),
  OptimizerRow("gradient_regularization(gamma=0.05, method='central') | sgd(0.1)", evaluations=2),
  OptimizerRow(
    "gradient_regularization(gamma=0.05, method='exact') | sgd(0.1)",
    evaluations=1,
    xfail={"any_size_of_gradient": "a Hessian times 1e20 by a gradient times 1e20 overflows"},
  ),
  OptimizerRow(
    "ignite(rho=0.1, r=0.1, lam=0.1, eta=0.01) | sgd(0.1)",
    evaluations=2,
    workers="matter",
    why="each worker's mean prediction is that of its own outputs",
    limits=(
      ("ignite(lam=0, eta=0)", "identity()"),
      ("ignite(rho=0, epsilon=0)", "identity()"),
      ("ignite(eta=0, clamp=True)", "ignite(eta=0, clamp=False)"),
    ),
    bad={
      "ignite(rho=-1)": "rho must be at least 0, got -1",
      "ignite(r=0)": "r must be above 0, got 0",
      "ignite(eta=-1)": "eta must be at least 0, got -1",
      "ignite(epsilon=-1)": "epsilon must be at least 0, got -1",
    },
  ),
  OptimizerRow(
    "booster(lam=0.5, alpha=0.1) | sgd(0.1)",
    evaluations=3,
    workers="matter",
    why="an example by itself is a worker's whole batch, of one group",
    limits=(
      ("booster(lam=0)", "booster(alpha=0)"),
      ("booster(harmful=9)", "identity()"),
      ("booster(lam=0.5, harmful=9)", "booster(lam=2.0, harmful=9)"),
    ),
    bad={
      "booster(lam=-1)": "lam must be at least 0, got -1",
      "booster(alpha=-1)": "alpha must be at least 0, got -1",
      "booster(harmful=-1)": "harmful must be a whole number of at least 0, got -1",
      "booster(eps=-1)": "eps must be at least 0, got -1",
    },
  ),
  OptimizerRow(
    "sgtm({'kernel': (1, 3), 'bias': (0, 3)}) | sgd(0.1)",
    evaluations=1,
    workers="matter",
    why="an example by itself is a worker's whole batch, of one group",
    xfail={"odd_trees": "there is no parameter that `split` could find"},
    limits=(
      ("sgtm({'kernel': (1, 3)}, forget_group=9)", "identity()"),
      ("sgtm({'kernel': (1, 8)})", "identity()"),
      ("sgtm({'kernel': (1, 3)}, retain_group=9)", "sgtm({'kernel': (-1, 3)})"),
    ),
    bad={
      "sgtm({'(': (0, 1)})": "split must be a regular expression, got '('",
      "sgtm({'kernel': (0, -1)})": "number must be a whole number of at least 0, got -1",
      "sgtm({}, forget_group=-1)": "forget_group must be a whole number of at least 0, got -1",
      "sgtm({}, retain_group=0.5)": "retain_group must be a whole number of at least 0, got 0.5",
    },
  ),
  OptimizerRow(
    "sgtm({'kernel': (1, 3), 'bias': (0, 0)}, retain_group=2) | sgd(0.1)",
    evaluations=3,
    workers="matter",
    why="an example by itself is a worker's whole batch, of one group",
    xfail={"odd_trees": "there is no parameter that `split` could find"},
  ),
  OptimizerRow(
    "reparameterized(sgd(0.1), weight_norm())",
    limits=(("reparameterized(sgd(0), weight_norm())", "set_to_zero()"),),
    bad={
      "reparameterized(sgd(0.1), 0.5)": "by must be a Reparameterization, got 0.5",
      "reparameterized(sgd(0.1), weight_norm(axis=0.5))": "axis must be a whole number, got 0.5",
    },
  ),
  OptimizerRow(
    "reparameterized(adam(0.01), weight_compander(a=3, b=2, learn=True))",
    limits=(
      ("reparameterized(sgd(0.1), weight_compander(a=1000, b=1000))", "sgd(0.1)"),
      ("reparameterized(sgd(0), weight_compander(a=3))", "set_to_zero()"),
    ),
    bad={
      "reparameterized(sgd(0.1), weight_compander(a=0))": "a must be above 0, got 0",
      "reparameterized(sgd(0.1), weight_compander(b=-1))": "b must be above 0, got -1",
    },
  ),
  OptimizerRow(
    "orthonormal(strength=0.01) | sgd(0.1)",
    limits=(("orthonormal(strength=0)", "identity()"),),
    bad={"orthonormal(strength=-1)": "strength must be at least 0, got -1"},
  ),
  OptimizerRow(
    "udim(rho_x=0.5, lam=0.1) | sgd(0.1)",
    evaluations=4,
    workers="matter",
    why="each worker's inconsistency is that of its own examples",
    limits=(("udim(lam=0)", "sam(rho=0.05)"),),
    bad={
      "udim(rho=-1)": "rho must be at least 0, got -1",
      "udim(rho_x=-1)": "rho_x must be at least 0, got -1",
      "udim(lam=-1)": "lam must be at least 0, got -1",
    },
  ),
  OptimizerRow(
    "micro_adam(0.02, m=4, density=0.25, quant_block_size=8, weight_decay=0.01)",
    limits=(
      ("micro_adam(0)", "set_to_zero()"),
      ("micro_adam(0.02, m=5, density=1, window_dtype='float32')", "adam(0.02)"),
    ),
    bad={
      "micro_adam(-1)": "learning_rate must be at least 0, got -1",
      "micro_adam(0.1, weight_decay=-1)": "weight_decay must be at least 0, got -1",
      "micro_adam(0.1, density=0)": "density must be a number in (0, 1], got 0",
    },
    xfail={"bfloat16": "window and ranges are bfloat16 for all parameters, as in the paper"},
  ),
  OptimizerRow(
    "scale_by_micro_adam(m=4, density=0.25, alpha=0.1, stats_dtype='float32') | sgd(0.02)",
    limits=(("scale_by_micro_adam(m=5, density=1, window_dtype='float32')", "scale_by_adam()"),),
    bad={
      "scale_by_micro_adam(m=0)": "m must be a whole number of at least 1, got 0",
      "scale_by_micro_adam(density=1.5)": "density must be a number in (0, 1], got 1.5",
      "scale_by_micro_adam(block_size=0)": "block_size must be a whole number of at least 1",
      "scale_by_micro_adam(block_size=32768)": "block_size must be in [1, 32767], got 32768",
      "scale_by_micro_adam(quant_block_size=7)": "quant_block_size must be even, got 7",
      "scale_by_micro_adam(shards=0)": "shards must be a whole number of at least 1, got 0",
      "scale_by_micro_adam(b1=1)": "b1 must be in [0, 1), got 1",
      "scale_by_micro_adam(b2=1)": "b2 must be in [0, 1), got 1",
      "scale_by_micro_adam(eps=-1)": "eps must be at least 0, got -1",
      "scale_by_micro_adam(alpha=1)": "alpha must be in [0, 1), got 1",
      "scale_by_micro_adam(window_dtype='int8')": "window_dtype must be one of ['bfloat16',",
      "scale_by_micro_adam(stats_dtype='int8')": "stats_dtype must be one of ['bfloat16',",
    },
    xfail={"bfloat16": "window and ranges are bfloat16 for all parameters, as in the paper"},
  ),
]
