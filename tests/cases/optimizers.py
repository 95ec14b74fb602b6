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
    limits=(
      ("optimistic_omd(0)", "set_to_zero()"),
      ("optimistic_omd(0.1, hint='none')", "mirror_descent(0.1)"),
      ("optimistic_omd(0.1, p_norm(2.0))", "optimistic_omd(0.1)"),
      ("optimistic_omd(0.2, mahalanobis(2.0))", "optimistic_omd(0.1)"),
    ),
    bad={
      "optimistic_omd(-1)": "learning_rate must be at least 0, got -1",
      "optimistic_omd(euclidean())": "learning_rate must be a StepSize, got MirrorMap(",
      "optimistic_omd(0.1, mirror=1)": "mirror must be a MirrorMap, got 1",
      "optimistic_omd(0.1, hint='next')": "hint must be one of ['external', 'last', 'none'], got",
      "optimistic_omd(0.1, euclidean(1))": "projection must be a Projection, got 1",
      "optimistic_omd(0.1, p_norm(1))": "p must be above 1, got 1",
      "optimistic_omd(0.1, p_norm(3))": "p must be in [1, 2], got 3",
      "optimistic_omd(0.1, p_norm(2, 0))": "radius must be above 0, got 0",
      "optimistic_omd(0.1, mahalanobis(0))": "matrix must be positive definite, got eigenvalues",
      "optimistic_omd(0.1, mahalanobis([[1, 2], [0, 1]]))": "matrix must be symmetric, got",
    },
  ),
  OptimizerRow("optimistic_omd(0.1, mirror=entropy())", params="simplex"),
  OptimizerRow(
    "optimistic_omd(sea_convex(8.0, 2.0), mirror=euclidean(l2_ball(4.0)))",
    limits=(
      ("optimistic_omd(sea_convex(1.0, 0.0, 1e12))", "optimistic_omd(1e-6)"),
      (
        "optimistic_omd(sea_convex(8.0, 2.0), euclidean(l2_ball(1e6)))",
        "optimistic_omd(sea_convex(8.0, 2.0))",
      ),
    ),
    bad={
      "optimistic_omd(sea_convex(0, 1))": "diameter must be above 0, got 0",
      "optimistic_omd(sea_convex(1, -1))": "bound must be at least 0, got -1",
      "optimistic_omd(sea_convex(1, 1, 0))": "delta must be above 0, got 0",
      "optimistic_omd(0.1, euclidean(l2_ball(0)))": "radius must be above 0, got 0",
    },
  ),
  OptimizerRow(
    "optimistic_omd(sea_adahedge(2.0), mirror=p_norm(1.5, radius=20.0))",
    tolerance=10,
    why="roots and powers lose digits in float32",
    bad={"optimistic_omd(sea_adahedge(0))": "diameter must be above 0, got 0"},
  ),
  OptimizerRow(
    "optimistic_omd(sea_strongly_convex(4.0), mahalanobis(2.0, box(-4.0, 4.0)), hint='none')",
    bad={
      "optimistic_omd(sea_strongly_convex(0))": "lam must be above 0, got 0",
      "optimistic_omd(0.1, euclidean(box(1, 0)))": "upper must be at least 1, got 0",
    },
  ),
  OptimizerRow(
    "optimistic_ons(1.0, diameter=8.0, bound=1.0, alpha=0.1, projection=l2_ball(4.0))",
    tolerance=30,
    why="the search for the projection ends within a few roundings of float32",
    limits=(
      ("optimistic_ons(0, diameter=1.0, bound=1.0)", "set_to_zero()"),
      ("optimistic_ons(0.1, diameter=1.0, bound=1.0, alpha=1e-9)", "optimistic_omd(0.1)"),
    ),
    bad={
      "optimistic_ons(-1, diameter=1, bound=1)": "learning_rate must be at least 0, got -1",
      "optimistic_ons(diameter=0, bound=1)": "diameter must be above 0, got 0",
      "optimistic_ons(diameter=1, bound=0)": "bound must be above 0, got 0",
      "optimistic_ons(diameter=1, bound=1, alpha=0)": "alpha must be above 0, got 0",
      "optimistic_ons(diameter=1, bound=1, hint='own')": "hint must be one of ['external', 'last',",
      "optimistic_ons(diameter=1, bound=1, projection=1)": "projection must be a Projection, got 1",
      "optimistic_ons(diameter=1, bound=1, max_size=0)": "max_size must be a whole number of at",
    },
  ),
  OptimizerRow(
    "optimistic_ensemble(1.0, diameter=8.0, bound=1.0, smoothness=1.0, steps=50, bases=3,"
    " projection=l2_ball(4.0))",
    limits=(
      ("optimistic_ensemble(0, diameter=8.0, bound=1.0, smoothness=1.0)", "set_to_zero()"),
      (
        "optimistic_ensemble(diameter=8.0, bound=1.0, smoothness=1.25, bases=1)",
        "optimistic_omd(0.1)",
      ),
    ),
    bad={
      "optimistic_ensemble(-1, diameter=1, bound=1, smoothness=1)": "learning_rate must be at",
      "optimistic_ensemble(diameter=0, bound=1, smoothness=1)": "diameter must be above 0, got 0",
      "optimistic_ensemble(diameter=1, bound=0, smoothness=1)": "bound must be above 0, got 0",
      "optimistic_ensemble(diameter=1, bound=1, smoothness=0)": "smoothness must be above 0, got 0",
      "optimistic_ensemble(diameter=1, bound=1, smoothness=1, steps=0)": "steps must be a whole",
      "optimistic_ensemble(diameter=1, bound=1, smoothness=1, bases=0)": "bases must be a whole",
      "optimistic_ensemble(diameter=1, bound=1, smoothness=1, projection=1)": "be a Projection",
    },
  ),
  OptimizerRow(
    "mirror_descent(0.1)",
    limits=(("mirror_descent(0.1)", "sgd(0.1)"), ("mirror_descent(0)", "set_to_zero()")),
    bad={
      "mirror_descent(-1)": "learning_rate must be at least 0, got -1",
      "mirror_descent(0.1, mirror=1)": "mirror must be a MirrorMap, got 1",
    },
  ),
  OptimizerRow("mirror_descent(0.1, mirror=euclidean(non_negative()))"),
  OptimizerRow(
    "dual_averaging(0.1)",
    limits=(("dual_averaging(0.1)", "sgd(0.1)"), ("dual_averaging(0)", "set_to_zero()")),
    bad={
      "dual_averaging(-1)": "learning_rate must be at least 0, got -1",
      "dual_averaging(0.1, mirror=1)": "mirror must be a MirrorMap, got 1",
    },
  ),
  OptimizerRow(
    "dual_averaging(0.1, mirror=euclidean(l1_ball(8.0)))",
    bad={"dual_averaging(0.1, euclidean(l1_ball(0)))": "radius must be above 0, got 0"},
  ),
  OptimizerRow(
    "extragradient(0.1)",
    evaluations=1,
    limits=(
      ("extragradient(0)", "set_to_zero()"),
      ("extragradient(0.1)", "extragradient(0.1, p_norm(2.0), average=False)"),
    ),
    bad={
      "extragradient(-1)": "learning_rate must be at least 0, got -1",
      "extragradient(0.1, mirror=1)": "mirror must be a MirrorMap, got 1",
    },
  ),
  OptimizerRow(
    "frank_wolfe(0.05, domain=l1_ball(8.0))",
    limits=(("frank_wolfe(0, domain=l1_ball(8.0))", "set_to_zero()"),),
    bad={
      "frank_wolfe(2, domain=l1_ball())": "learning_rate must be in [0, 1], got 2",
      "frank_wolfe(domain=1)": "domain must be a Projection, got 1",
      "frank_wolfe(domain=non_negative())": "domain must have a lowest point along every direction",
      "frank_wolfe(domain=l1_ball(), smoothness=0)": "smoothness must be above 0, got 0",
      "frank_wolfe(1, domain=l1_ball(), smoothness=1)": "smoothness must be None where",
    },
  ),
  OptimizerRow(
    "frank_wolfe(domain=simplex(), smoothness=1.0)",
    params="simplex",
    limits=(("frank_wolfe(0, domain=simplex())", "set_to_zero()"),),
  ),
  OptimizerRow(
    "opt_amsgrad(0.01)",
    limits=(
      ("opt_amsgrad(0)", "set_to_zero()"),
      ("opt_amsgrad(0.1, b1=0, b2=1, eps=1)", "optimistic_omd(0.1)"),
      ("opt_amsgrad(b1=0)", "opt_amsgrad(b1=0, lookback_momentum=False)"),
    ),
    bad={
      "opt_amsgrad(-1)": "learning_rate must be at least 0, got -1",
      "opt_amsgrad(b1=1)": "b1 must be in [0, 1), got 1",
      "opt_amsgrad(b2=2)": "b2 must be in [0, 1], got 2",
      "opt_amsgrad(eps=0)": "eps must be above 0, got 0",
      "opt_amsgrad(predictor='next')": "predictor must be one of ['last', 'rmpe'], got 'next'",
      "opt_amsgrad(r=1)": "r must be a whole number of at least 2, got 1",
      "opt_amsgrad(reg=0)": "reg must be above 0, got 0",
      "opt_amsgrad(combine='all')": "combine must be one of ['old', 'recent'], got 'all'",
    },
  ),
  OptimizerRow("opt_amsgrad(0.01, predictor='rmpe', r=2, reg=0.1)"),
  OptimizerRow(
    "og_plus(0.05, 0.1)",
    limits=(
      ("og_plus(0.1, 0.1)", "optimistic_omd(0.1)"),
      ("og_plus(0.1, 0)", "sgd(0.1)"),
      ("og_plus(0, 0)", "set_to_zero()"),
    ),
    bad={
      "og_plus(-1, 0.1)": "learning_rate must be at least 0, got -1",
      "og_plus(0.1, -1)": "extrapolation_rate must be at least 0, got -1",
    },
  ),
  OptimizerRow(
    "opt_da_plus(0.05, 0.1)",
    limits=(("opt_da_plus(0.05, 0.1)", "og_plus(0.05, 0.1)"),),
    bad={
      "opt_da_plus(-1, 0.1)": "learning_rate must be at least 0, got -1",
      "opt_da_plus(0.1, -1)": "extrapolation_rate must be at least 0, got -1",
    },
  ),
  OptimizerRow(
    "adaptive_og_plus(0.1)",
    limits=(("adaptive_og_plus(0)", "set_to_zero()"),),
    bad={
      "adaptive_og_plus(-1)": "learning_rate must be at least 0, got -1",
      "adaptive_og_plus(q=0.5)": "q must be in [0, 0.25], got 0.5",
    },
  ),
  OptimizerRow(
    "adaptive_opt_da_plus(0.1)",
    limits=(("adaptive_opt_da_plus(0)", "set_to_zero()"),),
    bad={
      "adaptive_opt_da_plus(-1)": "learning_rate must be at least 0, got -1",
      "adaptive_opt_da_plus(q=0.5)": "q must be in [0, 0.25], got 0.5",
    },
  ),
  OptimizerRow(
    "u_dog(1.0, reps_rel=0.01)",
    limits=(
      ("u_dog(0)", "set_to_zero()"),
      ("u_dog(reps_rel=0.01, radius=1e6)", "u_dog(reps_rel=0.01)"),
    ),
    bad={
      "u_dog(-1)": "learning_rate must be at least 0, got -1",
      "u_dog(reps_rel=0)": "reps_rel must be above 0, got 0",
      "u_dog(eps=-1)": "eps must be at least 0, got -1",
      "u_dog(radius=0)": "radius must be above 0, got 0",
    },
  ),
  OptimizerRow(
    "unixgrad(1.0, diameter=3.0)",
    limits=(("unixgrad(0, diameter=3.0)", "set_to_zero()"),),
    bad={
      "unixgrad(diameter=0)": "diameter must be above 0, got 0",
      "unixgrad(-1, diameter=1.0)": "learning_rate must be at least 0, got -1",
    },
  ),
  OptimizerRow(
    "online_to_nonconvex(projected_ogd(0.1, radius=0.5), epoch=2)",
    method="online_to_nonconvex",
    limits=(
      ("online_to_nonconvex(projected_ogd(0, 1))", "set_to_zero()"),
      (
        "online_to_nonconvex(add_decayed_weights(1.0) | sgd(0.1), scaling='none')",
        "sgd(0.1, momentum=0.9)",
      ),
      ("online_to_nonconvex(add_decayed_weights(10.0) | sgd(0.1), scaling='none')", "sgd(0.1)"),
    ),
    bad={
      "online_to_nonconvex(sgd(0.1), scaling='all')": "scaling must be one of ['exponential',",
      "online_to_nonconvex(sgd(0.1), epoch=0)": "epoch must be a whole number of at least 1",
    },
  ),
  OptimizerRow(
    "online_to_nonconvex(scale_free_ogd(radius=0.1), scaling='exponential')",
    method="online_to_nonconvex",
  ),
  OptimizerRow(
    "projected_ogd(0.1, radius=8.0)",
    limits=(("projected_ogd(0.1, radius=1e6)", "sgd(0.1)"),),
    bad={
      "projected_ogd(-1, 1.0)": "learning_rate must be at least 0, got -1",
      "projected_ogd(0.1, 0)": "radius must be above 0, got 0",
    },
  ),
  OptimizerRow(
    "optimistic_ogd(0.1, radius=8.0)",
    limits=(("optimistic_ogd(0.1, radius=1e6)", "optimistic_omd(0.1)"),),
    bad={
      "optimistic_ogd(-1, 1.0)": "learning_rate must be at least 0, got -1",
      "optimistic_ogd(0.1, 0)": "radius must be above 0, got 0",
    },
  ),
  OptimizerRow(
    "scale_free_ogd(0.1, radius=8.0)",
    bad={
      "scale_free_ogd(radius=0)": "radius must be above 0, got 0",
      "scale_free_ogd(-1, radius=1.0)": "learning_rate must be at least 0, got -1",
    },
  ),
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
    "svrg(3, every=5) | sgd(0.1)",
    limits=(("svrg(3, pause=False)", "identity()"),),
    bad={
      "svrg(0)": "batches must be a whole number of at least 1, got 0",
      "svrg(3, every=0)": "every must be a whole number of at least 1, got 0",
    },
  ),
  OptimizerRow("svrg(2, pause=False) | sgd(0.1)"),
  OptimizerRow(
    "saga() | sgd(0.1)",
    evaluations=1,
    workers="matter",
    why="each worker's losses are those of its own examples",
    limits=(("saga(8)", "identity()"),),
    bad={"saga(0)": "num_examples must be a whole number of at least 1, got 0"},
  ),
  OptimizerRow(
    "smb(1.0)",
    evaluations=1,
    limits=(("smb(0)", "set_to_zero()"), ("smb(0.05, c=1e-9)", "sgd(0.05)")),
    bad={
      "smb(-1)": "learning_rate must be at least 0, got -1",
      "smb(eta=0)": "eta must be above 0, got 0",
      "smb(eta=1)": "eta must be in [0, 1), got 1",
      "smb(c=-1)": "c must be at least 0, got -1",
      "smb(gamma=-1)": "gamma must be at least 0, got -1",
      "smb(beta=0)": "beta must be above 0, got 0",
      "smb(beta=1)": "beta must be in [0, 1), got 1",
      "smb(max_rate=0)": "max_rate must be above 0, got 0",
      "smb(steps_per_epoch=0)": "steps_per_epoch must be a whole number of at least 1, got 0",
    },
  ),
  OptimizerRow(
    "smb(2.0, independent=True, autoschedule=True, steps_per_epoch=2)",
    evaluations=1,
  ),
  OptimizerRow(
    "stochastic_model_based(0.5, entrywise=True, sweeps=40)",
    evaluations=1,
    workers="matter",
    why="each worker's model is that of its own outputs",
    limits=(
      ("stochastic_model_based(0.5, entrywise=True, sweeps=100)", "egn(1.0, damping=2.0)"),
      ("stochastic_model_based(0, entrywise=True)", "set_to_zero()"),
    ),
    bad={
      "stochastic_model_based(-1)": "learning_rate must be at least 0, got -1",
      "stochastic_model_based(1, 'newton')": "model must be one of ['prox_linear', 'prox_point',",
      "stochastic_model_based(1, linearizations=0)": "linearizations must be a whole number",
      "stochastic_model_based(1, sweeps=0)": "sweeps must be a whole number of at least 1, got 0",
    },
  ),
  OptimizerRow(
    "stochastic_model_based(0.5, 'prox_point', entrywise=True, linearizations=3)",
    evaluations=3,
    workers="matter",
    why="each worker's model is that of its own outputs",
  ),
  OptimizerRow(
    "stochastic_model_based(0.5, 'truncated')",
    limits=(("stochastic_model_based(0.01, 'truncated')", "sgd(0.01)"),),
  ),
  OptimizerRow(
    "sso_target_surrogate(1.0, inner_steps=3)",
    evaluations=15,
    workers="matter",
    why="each worker's surrogate is that of its own outputs",
    limits=(
      ("sso_target_surrogate(0)", "set_to_zero()"),
      ("sso_target_surrogate(2.0, inner_steps=1, initial_step=0.01)", "sgd(0.02)"),
    ),
    bad={
      "sso_target_surrogate(-1)": "learning_rate must be at least 0, got -1",
      "sso_target_surrogate(1, 0)": "inner_steps must be a whole number of at least 1, got 0",
      "sso_target_surrogate(1, c=1)": "c must be in [0, 1), got 1",
      "sso_target_surrogate(1, shrink=0)": "shrink must be above 0, got 0",
      "sso_target_surrogate(1, shrink=1)": "shrink must be in [0, 1), got 1",
      "sso_target_surrogate(1, initial_step=0)": "initial_step must be above 0, got 0",
    },
  ),
  OptimizerRow(
    "proxyprox(0.5, sgd(0.1), inner_steps=3, slices=2)",
    evaluations=3,
    workers="matter",
    why="a slice of a worker's part is not a slice of the batch",
    xfail={"any_size_of_gradient": "the inner descent diverges at a curvature of 1e20"},
    limits=(("proxyprox(0.5, sgd(0.1), inner_steps=1)", "sgd(0.1)"),),
    bad={
      "proxyprox(0, sgd(0.1))": "learning_rate must be above 0, got 0",
      "proxyprox(1, sgd(0.1), inner_steps=0)": "inner_steps must be a whole number of at least 1",
      "proxyprox(1, sgd(0.1), slices=0)": "slices must be a whole number of at least 1, got 0",
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
    "reparameterized(adam(0.02), statsq(bits=3))",
    bad={
      "reparameterized(sgd(0.1), statsq(bits=0))": "bits must be a whole number of at least 1",
      "reparameterized(sgd(0.1), statsq(axis=None))": "axis must be a whole number, got None",
    },
  ),
  OptimizerRow(
    "reparameterized(adam(0.02), lsq(bits=3))",
    bad={
      "reparameterized(sgd(0.1), lsq(bits=1))": "bits must be a whole number of at least 2, got 1",
      "reparameterized(sgd(0.1), lsq(axis=0.5))": "axis must be a whole number, got 0.5",
    },
  ),
  OptimizerRow(
    "reparameterized(cga(adam(0.02), bits=2, boundary=0.1), statsq(bits=2))",
    method="cga",
    limits=(("cga(adam(0.02), boundary=1e9)", "adam(0.02)"),),
    bad={
      "cga(sgd(0.1), bits=0)": "bits must be a whole number of at least 1, got 0",
      "cga(sgd(0.1), boundary=-1)": "boundary must be at least 0, got -1",
      "cga(sgd(0.1), axis=0.5)": "axis must be a whole number, got 0.5",
    },
  ),
  OptimizerRow(
    "reparameterized(sgd(0.1) | track_oscillation(lsq(bits=3)), lsq(bits=3))",
    method="track_oscillation",
    limits=(("sgd(0.1) | track_oscillation(statsq())", "sgd(0.1)"),),
    bad={
      "track_oscillation(2)": "by must be a Reparameterization, got 2",
      "track_oscillation(weight_norm())": "by must have levels, as statsq() and lsq() have",
      "track_oscillation(statsq(), momentum=2)": "momentum must be in [0, 1], got 2",
    },
  ),
  OptimizerRow(
    "reparameterized(gaqat(rho=0.05, window=2, threshold=0.5) | sgd(0.1), lsq(bits=4))",
    method="gaqat",
    evaluations=1,
    limits=(
      ("gaqat(rho=0.05)", "sam(rho=0.05)"),
      (
        "reparameterized(gaqat(threshold=0, window=2) | sgd(0.1), lsq())",
        "reparameterized(sam(mask=norm_layer_mask('raw|bias|gain')) | sgd(0.1), lsq())",
      ),
    ),
    bad={
      "gaqat(rho=-1)": "rho must be at least 0, got -1",
      "gaqat(window=1)": "window must be a whole number of at least 2, got 1",
      "gaqat(threshold=-1)": "threshold must be at least 0, got -1",
      "gaqat(freeze='both')": "freeze must be one of ['smooth', 'task'], got 'both'",
      "gaqat(eps=-1)": "eps must be at least 0, got -1",
    },
  ),
  OptimizerRow(
    "int4_gradients(sgd(0.1))",
    limits=(("int4_gradients(adam(0.02))", "adam(0.02)"),),
    bad={"int4_gradients(sgd(0.1), step=-1)": "step must be at least 0, got -1"},
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
    "lift(0.1, lora_rank=2, filter_rank=2, update_interval=3, weight_decay=0.01)",
    limits=(
      ("lift(0, 1)", "set_to_zero()"),
      ("lift(0.02, lora_rank=6, eps=0)", "adam(0.02, 0.9, 0.95, 0, where='kernel$')"),
      ("lift(0.02, 2, filter_rank=8)", "lift(0.02, 2, filter_rank=9, svd='randomized')"),
      ("lift(0.02, lora_rank=2)", "lift(0.02, density=0.375)"),
      ("lift(0.02, exclude='kernel')", "set_to_zero()"),
    ),
    bad={
      "lift(-1)": "learning_rate must be at least 0, got -1",
      "lift(0.1, lora_rank=0)": "lora_rank must be a whole number of at least 1, got 0",
      "lift(0.1, filter_rank=0)": "filter_rank must be a whole number of at least 1, got 0",
      "lift(0.1, update_interval=0.5)": "update_interval must be a whole number of at least 1",
      "lift(0.1, density=0)": "density must be a number in (0, 1], got 0",
      "lift(0.1, b1=1)": "b1 must be in [0, 1), got 1",
      "lift(0.1, b2=1)": "b2 must be in [0, 1), got 1",
      "lift(0.1, eps=-1)": "eps must be at least 0, got -1",
      "lift(0.1, weight_decay=-1)": "weight_decay must be at least 0, got -1",
      "lift(0.1, svd='fast')": "svd must be one of ['exact', 'randomized'], got 'fast'",
      "lift(0.1, power_iterations=-1)": "power_iterations must be a whole number of at least 0",
      "lift(0.1, exclude='(')": "exclude must be a regular expression, got '('",
    },
  ),
  OptimizerRow("lift(0.1, filter_rank=1, density=0.3, svd='randomized', power_iterations=0)"),
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
  OptimizerRow(
    "sparse_mfac(m=4, density=0.25, damp=0.1, block_size=16) | sgd(0.05)",
    limits=(
      ("sparse_mfac(m=3, density=1, damp=1e9) | scale(1e9)", "identity()"),
      ("sparse_mfac(m=3, density=1, block_size=3)", "sparse_mfac(m=3, density=1)"),
    ),
    bad={
      "sparse_mfac(m=0)": "m must be a whole number of at least 1, got 0",
      "sparse_mfac(density=0)": "density must be a number in (0, 1], got 0",
      "sparse_mfac(damp=0)": "damp must be above 0, got 0",
      "sparse_mfac(block_size=0)": "block_size must be a whole number of at least 1, got 0",
      "sparse_mfac(window_dtype='int8')": "window_dtype must be one of ['bfloat16', 'float32'],",
      "sparse_mfac(shards=0)": "shards must be a whole number of at least 1, got 0",
    },
  ),
  OptimizerRow(
    "sparse_ggt(m=4, density=0.25) | sgd(0.2)",
    limits=(("sparse_ggt(m=3, density=1, eps=1e9) | scale(1e9)", "identity()"),),
    bad={
      "sparse_ggt(m=0)": "m must be a whole number of at least 1, got 0",
      "sparse_ggt(density=1.5)": "density must be a number in (0, 1], got 1.5",
      "sparse_ggt(eps=0)": "eps must be above 0, got 0",
      "sparse_ggt(jitter=-1)": "jitter must be at least 0, got -1",
      "sparse_ggt(block_size=0.5)": "block_size must be a whole number of at least 1, got 0.5",
      "sparse_ggt(window_dtype='int8')": "window_dtype must be one of ['bfloat16', 'float32'],",
      "sparse_ggt(shards=0)": "shards must be a whole number of at least 1, got 0",
    },
  ),
  OptimizerRow(
    "low_rank_mfac(m=4, rank=2, damp=0.1) | sgd(0.05)",
    limits=(
      ("low_rank_mfac(m=3, rank=8, damp=0.1)", "sparse_mfac(m=3, density=1, damp=0.1)"),
      ("low_rank_mfac(m=3, rank=8, damp=1e9) | scale(1e9)", "identity()"),
    ),
    bad={
      "low_rank_mfac(m=0)": "m must be a whole number of at least 1, got 0",
      "low_rank_mfac(rank=0)": "rank must be a whole number of at least 1, got 0",
      "low_rank_mfac(damp=0)": "damp must be above 0, got 0",
    },
  ),
]
