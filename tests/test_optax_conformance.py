"""optax's own conformance tests, which come with its wheel, on every optimizer.

`optax/contrib/_common_test.py` tests the optimizers in lists at its head. Here those lists are
rewritten: each method takes their place in turn, on the first of its rows. It goes by the name
of `sophia`, the one optimizer to which these tests hand their objective.

The common tests of `optax/_src/alias_test.py` are left out: they are the same, besides complex
parameters, which no method here claims to have, and hand nobody their objective.
"""

import ast
import fnmatch
import functools
import importlib
import importlib.util
import inspect
import unittest
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.flatten_util import ravel_pytree

from jaxrl import spec
from jaxrl.oracle import Oracle
from tests import tiers
from tests.cases import OptimizerRow, rows
from tests.properties import KNOWN, entry_of, wrapped

MODULE = "optax.contrib._common_test"

TESTS = (
  "test_gradient_accumulation0",  # bfloat16
  "test_gradient_accumulation1",
  "test_optimizers0",  # a parabola; each has to be minimised in 30,000 steps
  "test_optimizers1",  # Rosenbrock's function
  "test_optimizers2",  # a parabola of a matrix
  "test_optimizers3",  # a parabola of a vector and a matrix
  "test_optimizers_accept_extra_args0",
  "test_optimizers_accept_extra_args1",  # without a wrapper, and so the same again: left out
  "test_optimizers_accept_learning_rate_schedule_if_type_annotated_as_such0",
  "test_optimizers_can_be_wrapped_in_inject_hyperparams0",
  "test_preserve_dtype0",  # bfloat16
  "test_preserve_dtype1",
  "test_state_shape_dtype_shard_stability0",  # float16
  "test_state_shape_dtype_shard_stability1",  # bfloat16
  "test_state_shape_dtype_shard_stability2",
  "test_state_shape_dtype_shard_stability3",  # float64
)
LEFT_OUT = {"test_optimizers_accept_extra_args1"}

# Rosenbrock's function has curvatures from 0.4 to 1000: steps have to be small, and a radius
# around the parameters as well, for its minimum to be that of what a method descends.
RATE = "5e-4"
FITTED = {
  "adam_coordinate_clip": "adam_coordinate_clip(0.02, fraction=0.1)",
  "amp": "amp(epsilon=0.001) | sgd(5e-4)",
  "cga": "cga(sgd(5e-4), boundary=1e9)",
  "dual_averaging": "dual_averaging(5e-4)",
  "extragradient": "extragradient(5e-4)",
  "frank_wolfe": "frank_wolfe(5e-4, domain=l2_ball(6.0))",
  "gam": "gam(rho=0.01, rho_prime=0.001) | sgd(5e-4)",
  "gam_exact": "gam_exact(rho=0.01, alpha=0.1) | sgd(5e-4)",
  "gam_sam": "gam_sam(rho=0.01, alpha=0.1, rho_sam=0.001) | sgd(5e-4)",
  "gaqat": "gaqat(rho=0.001) | sgd(5e-4)",
  "gradient_regularization": "gradient_regularization(gamma=1e-4, eps=0.01) | sgd(5e-4)",
  "gravity": "gravity(1.0)",
  "low_rank_mfac": "low_rank_mfac(m=4, rank=2, damp=100.0) | sgd(0.05)",
  "mirror_descent": "mirror_descent(5e-4)",
  "newton_cg": "newton_cg(1.0)",
  "oasis": "oasis(0.1, adaptive=False, alpha=0.1)",
  "og_plus": "og_plus(2.5e-4, 5e-4)",
  "online_to_nonconvex": "online_to_nonconvex(add_decayed_weights(1000.0) | sgd(1e-4))",
  "opt_da_plus": "opt_da_plus(2.5e-4, 5e-4)",
  "optimistic_ensemble": "optimistic_ensemble(1.0, diameter=1.0, bound=1.0, smoothness=250.0,"
  " steps=30000, bases=2)",
  "optimistic_ogd": "optimistic_ogd(5e-4, radius=10.0)",
  "optimistic_omd": "optimistic_omd(5e-4)",
  "optimistic_ons": "optimistic_ons(5e-4, diameter=1.0, bound=1.0, alpha=1e-9)",
  "orthonormal": "orthonormal(strength=1e-4) | sgd(5e-4)",
  "projected_ogd": "projected_ogd(5e-4, radius=10.0)",
  "proxyprox": "proxyprox(5e-4, sgd(2e-4), inner_steps=2)",
  "sam": "sam(rho=0.001) | sgd(5e-4)",
  "saddle_free_newton": "saddle_free_newton(1.0)",
  "smb": "smb(5e-4)",
  "sparse_ggt": "sparse_ggt(m=4, density=0.5, eps=100.0) | sgd(0.05)",
  "sparse_mfac": "sparse_mfac(m=4, density=0.5, damp=100.0) | sgd(0.05)",
  "sso_target_surrogate": "sso_target_surrogate(5e-4, inner_steps=2, initial_step=1.0)",
  "stochastic_model_based": "stochastic_model_based(5e-4, 'truncated')",
  "svrg": "svrg(1, every=20) | sgd(5e-4)",
  "track_oscillation": "sgd(5e-4) | track_oscillation(lsq())",
  "unixgrad": "unixgrad(1.0, diameter=25.0)",
}
"""Specs by method, where the first row's (with SGD's rate replaced by RATE) doesn't do."""

FAILS = {
  ("adaptive_*", "test_optimizers1"): "its steps shrink by the gradients on the valley's walls",
  ("booster", "*"): "takes rows of a batch, and these losses have none",
  ("dbf_newton", "test_optimizers1"): "takes Rosenbrock's function for a convex one",
  ("frank_wolfe", "test_optimizers1"): "steps of constant length go to and fro across the valley",
  ("gravity", "test_optimizers1"): "divides the gradients on the valley's walls by their squares",
  ("lift", "test_optimizers[013]"): "vectors are frozen, and these have some",
  ("micro_adam", "test_optimizers[0-3]"): "steps of the size of the rate 0.02, and decay",
  ("perp_grad", "test_optimizers[0-3]"): "turns around the origin and can't reach every minimum",
  (
    "reparameterized",
    "test_optimizers3",
  ): "a column of zeros leaves along (1, 1), its goal (1, -1)",
  ("saga", "*"): "takes the numbers of a batch's rows, and these losses have no batch",
  ("sgtm", "*"): "splits parameters by names, and these have none",
  ("udim", "*"): "moves the inputs of a batch, and these losses have none",
}
"""Patterns of tests that must fail, by method, each with the reason."""


@functools.cache
def _source() -> tuple[Any, Any]:
  """The compiled head of optax's module, and its class of tests."""
  found = importlib.util.find_spec(MODULE)
  path = Path(found.origin)
  tree = ast.parse(path.read_text(encoding="utf-8"))
  first = next(i for i, node in enumerate(tree.body) if isinstance(node, ast.ClassDef))
  parts = tree.body[:first], tree.body[first : first + 1]
  return tuple(compile(ast.Module(part, []), str(path), "exec") for part in parts)


def conformance_tests(factory: Callable[..., Any], learning_rate: float) -> type[unittest.TestCase]:
  """optax's tests of one optimizer, `factory(learning_rate=...)`."""
  head, tests = _source()
  names: dict[str, Any] = {"__name__": MODULE}
  exec(head, names)
  case = {"opt_name": "sophia", "opt_kwargs": {"learning_rate": learning_rate}}
  case |= {"wrapper_name": None, "wrapper_kwargs": None}
  for listed in ("_ALL_OPTIMIZERS_UNDER_TEST", "_MAIN_OPTIMIZERS_UNDER_TEST"):
    assert names[listed], f"{MODULE} has no {listed} any more"
    names[listed] = (case,)
  names["_get_opt_factory"] = lambda name: factory
  exec(tests, names)
  return names["ContribTest"]


def with_objective(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
  """`optimizer`, which gets the extras of a train step, made from the `obj_fn` of the tests."""
  inner = optax.with_extra_args_support(optimizer)

  @functools.partial(jax.jit, static_argnames="obj_fn")
  def update(updates, state, params=None, *, obj_fn, **extra_args):
    extras = {"value": obj_fn(params), "grad": updates, "value_fn": _oracle(obj_fn, params)}
    return inner.update(updates, state, params, **extras, **extra_args)

  return optax.GradientTransformationExtraArgs(optimizer.init, update)


def _oracle(objective: Callable[[Any], jax.Array], params: Any) -> Oracle:
  """The loss `objective` of one example, whose outputs are the parameters."""
  unravel = ravel_pytree(params)[1]
  return Oracle(
    objective,
    params,
    outputs=lambda params: ravel_pytree(params)[0][None],
    loss_of=lambda outputs: objective(unravel(outputs[0])),
    losses=lambda params: objective(params)[None],
    of_slice=lambda params, index, slices: objective(params),
  )


class _Slowly(ast.NodeTransformer):
  """Replaces the rate of every `sgd(...)` in a spec by RATE."""

  def visit_Call(self, node):
    self.generic_visit(node)
    return ast.parse(f"sgd({RATE})", mode="eval").body if _name(node) == "sgd" else node


def _name(call: ast.expr) -> str:
  assert isinstance(call, ast.Call)
  return ast.unparse(call.func)


def _subject(row: OptimizerRow) -> tuple[Callable[..., Any], float]:
  """A factory of the row's optimizer by learning rate, and the rate to take."""
  fitted = FITTED.get(row.method)
  tree = ast.parse(fitted or row.spec, mode="eval").body
  tree = tree if fitted else _Slowly().visit(tree)
  elements, last = (tree.left, tree.right) if isinstance(tree, ast.BinOp) else (None, tree)
  takes_rate = _name(last) == "sgd" or "learning_rate" in _parameters(row)

  def factory(learning_rate: optax.ScalarOrSchedule):
    if not takes_rate:
      return with_objective(spec.optimizer(ast.unparse(tree), **KNOWN))
    if elements is None:
      return with_objective(_recipe(row, ast.unparse(last), learning_rate))
    assert _name(last) == "sgd", f"give {row.method} a spec in FITTED that ends in sgd"
    chain = spec.optimizer(ast.unparse(elements), **KNOWN)
    return with_objective(optax.chain(chain, optax.sgd(learning_rate)))

  return factory, ast.literal_eval(last.args[0]) if takes_rate else 1.0


def _parameters(row: OptimizerRow) -> list[str]:
  entry = entry_of(row)
  function = getattr(importlib.import_module(entry.module), entry.name)
  return list(inspect.signature(function).parameters)


def _recipe(row: OptimizerRow, text: str, learning_rate: Any) -> optax.GradientTransformation:
  """The recipe `text`, its first argument, the learning rate, replaced."""
  assert _parameters(row)[0] == "learning_rate"
  with wrapped(
    entry_of(row), lambda make, _, *args, **kwargs: make(learning_rate, *args, **kwargs)
  ):
    return spec.optimizer(text, **KNOWN)


@functools.cache
def _methods() -> dict[str, OptimizerRow]:
  """The first row of each method; methods whose parameters are bounded have none."""
  anywhere = [row for row in rows("optimizers") if row.params == "any"]
  return {row.method: row for row in reversed(anywhere)}


def _cases() -> list[Any]:
  return [
    pytest.param(row, test, id=f"{method}-{test}", marks=_marks(row, test))
    for method, row in sorted(_methods().items())
    for test in TESTS
    if test not in LEFT_OUT
  ]


def _marks(row: OptimizerRow, test: str) -> list[pytest.MarkDecorator]:
  reasons = [why for pattern, why in FAILS.items() if _fits(pattern, row.method, test)]
  marks = [pytest.mark.xfail(reason=reasons[0], strict=True)] if reasons else []
  group = pytest.mark.xdist_group(f"optax-{row.method}")
  return [*marks, group, *tiers.unless_changed(entry_of(row).file)]


def _fits(pattern: tuple[str, str], method: str, test: str) -> bool:
  return fnmatch.fnmatch(method, pattern[0]) and fnmatch.fnmatch(test, pattern[1])


@functools.lru_cache(maxsize=1)
def _tests_of(method: str) -> type[unittest.TestCase]:
  return conformance_tests(*_subject(_methods()[method]))


@pytest.mark.parametrize(("row", "test"), _cases())
def test_conformance(row, test):
  try:
    _tests_of(row.method)(test).debug()
  except unittest.SkipTest as skipped:
    raise AssertionError(f"optax's test did not run: {skipped}") from skipped


# The adapter.


def sgd(learning_rate: optax.ScalarOrSchedule):
  return with_objective(optax.sgd(learning_rate))


def test_all_tests_of_optax_are_known_and_exceptions_are_about_something():
  there = unittest.TestLoader().getTestCaseNames(conformance_tests(sgd, 0.1))
  assert tuple(there) == TESTS
  assert set(FITTED) <= set(_methods())
  for pattern in FAILS:
    assert any(_fits(pattern, method, test) for method in _methods() for test in TESTS), pattern
  assert len(_cases()) == 15 * len(_methods())


def by_the_loss(learning_rate: optax.ScalarOrSchedule):
  """Gradient descent that doesn't look at the gradient which it is given."""

  def update(updates, state, params=None, *, value, value_fn, **extra_args):
    del updates, extra_args
    value_here, gradient = jax.value_and_grad(value_fn)(params)
    moved = jax.tree.map(lambda g: jnp.where(value == value_here, -learning_rate * g, 0), gradient)
    return moved, state

  plain = optax.GradientTransformationExtraArgs(lambda params: (), update)
  return with_objective(plain)


def uphill(learning_rate: optax.ScalarOrSchedule):
  return with_objective(optax.sgd(-learning_rate))


def widening(learning_rate: optax.ScalarOrSchedule):
  wide = optax.stateless(lambda updates, params: optax.tree.cast(updates, jnp.float32))
  return with_objective(optax.chain(optax.sgd(learning_rate), wide))


def without_extras(learning_rate: optax.ScalarOrSchedule):
  sgd = optax.sgd(learning_rate)

  def update(updates, state, params=None, *, value, grad, value_fn):
    return sgd.update(updates, state, params)

  return with_objective(optax.GradientTransformationExtraArgs(sgd.init, update))


def test_methods_get_the_objective_of_the_test():
  conformance_tests(by_the_loss, 5e-4)("test_optimizers1").debug()


@pytest.mark.parametrize(
  ("faulty", "test", "error"),
  [
    (uphill, "test_optimizers0", AssertionError),
    (widening, "test_preserve_dtype0", AssertionError),
    (without_extras, "test_optimizers_accept_extra_args0", TypeError),
  ],
)
def test_planted_faults_are_found(faulty, test, error):
  with pytest.raises(error):
    conformance_tests(faulty, 5e-4)(test).debug()
