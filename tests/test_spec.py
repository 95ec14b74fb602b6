"""Specs: what they mean, what they refuse, and that no text does anything else."""

import ast
import datetime
import functools
import subprocess
import sys

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrl import catalogue, oracle, spec
from optimizers.sam import sam

FILES = {
  "trial_optimizers/__init__.py": "",
  "trial_optimizers/uphill.py": """
import optax
replaces_gradient = True
def uphill(rho: float = 1.0) -> optax.GradientTransformationExtraArgs:
  '''Climbs.

  More.
  '''
  if rho < 0:
    raise ValueError(f"rho must be at least 0,\\n  got {rho}")
  return optax.with_extra_args_support(optax.scale(rho))
def eval_params(state, params):
  return params
""",
  "trial_optimizers/descent.py": """
import optax
def descent(learning_rate, steps: int) -> "optax.GradientTransformation":
  return optax.sgd(learning_rate / steps)
def around(inner, keep=None) -> optax.GradientTransformationExtraArgs:
  return optax.chain(inner, optax.scale(keep.k if keep else 1))
def own_where(where: str) -> optax.GradientTransformation:
  return optax.scale(len(where))
def norm(tree):
  return _square(tree)
def _square(tree):
  return tree
""",
  "trial_optimizers/_private.py": "def private() -> Objective: ...",
  "trial_optimizers/compressors/keep.py": """
from typing import NamedTuple
class Compressor(NamedTuple):
  k: float
def keep(k: float = 1) -> Compressor:
  return Compressor(k)
""",
  "trial_objectives/__init__.py": "",
  "trial_objectives/losses/plain.py": """
def plain(logits, labels, *, scale=1.0, num_classes):
  return scale * (logits[:, 0] - labels) + num_classes
def foreign(logits, other, *, scale=1.0):
  return logits
""",
  "trial_objectives/broken.py": """
raise RuntimeError("imported")
def broken(key) -> "oracle.BatchTransform": ...
""",
  "trial_objectives/transforms/weigh.py": """
import optax
from jaxrl import oracle
def weigh(weight: float = 2.0) -> oracle.LossTransform:
  def update(losses, state, params=None, **extra_args):
    return losses._replace(weights=weight * losses.weights), state
  return optax.GradientTransformationExtraArgs(lambda params: (), update)
def shift(by: float) -> oracle.BatchTransform:
  return lambda key, batch: {**batch, "inputs": batch["inputs"] + by}
def remember(num_examples: int) -> oracle.Objective:
  return oracle.lift(lambda predictions: predictions[:, 0] * num_examples)
""",
}
PACKAGES = ("trial_optimizers", "trial_objectives")


@pytest.fixture(scope="module", autouse=True)
def trial_packages(tmp_path_factory):
  """Two small packages in the shape of ours."""
  root = write(tmp_path_factory.mktemp("trial"), FILES)
  with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(str(root))
    yield
  for name in [name for name in sys.modules if name.startswith("trial_")]:
    del sys.modules[name]


def write(root, files):
  for name, text in files.items():
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(text)
  return root


optimizer = functools.partial(spec.optimizer, packages=PACKAGES)
objective = functools.partial(spec.objective, packages=PACKAGES)

PARAMS = {"dense": {"kernel": jnp.full((2, 2), 2.0), "bias": jnp.full((2,), 3.0)}}
GRADIENT = {"dense": {"kernel": jnp.full((2, 2), 4.0), "bias": jnp.full((2,), 5.0)}}


def first_update(transform, **extras):
  """Kernel's and bias' first element of the first update."""
  updates, _ = transform.update(GRADIENT, transform.init(PARAMS), PARAMS, **extras)
  return float(updates["dense"]["kernel"][0, 0]), float(updates["dense"]["bias"][0])


def scalar(made, inputs=((1.0,), (3.0,)), labels=(0.0, 1.0)):
  """The loss of an objective for a model that returns its inputs."""
  batch = {"inputs": jnp.array(inputs), "labels": jnp.array(labels)}
  key = jax.random.key(0)
  return float(oracle.total(made.apply(made.init(key), lambda x: x, batch, key)[0]))


def refusal(read, text, **names):
  """The message with which `read` refuses a text: one line, of a length one can read."""
  with pytest.raises(spec.SpecError) as caught:
    read(text, **names)
  message = str(caught.value)
  assert len(message.splitlines()) == 1 and len(message) < 600
  return message


# What specs mean


def test_optimizer_chain_equals_the_same_chain_in_python():
  text = (
    "sam(rho=0.05) | clip_by_global_norm(1.0) | "
    "adamw(cosine_decay_schedule(1e-3, steps), weight_decay=1e-4)"
  )
  ours = spec.optimizer(text, steps=10)
  by_hand = optax.chain(
    sam(rho=0.05),
    optax.clip_by_global_norm(1.0),
    optax.adamw(optax.cosine_decay_schedule(1e-3, 10), weight_decay=1e-4),
  )
  loss = lambda params: sum(jnp.sum(leaf**3) for leaf in jax.tree.leaves(params))  # noqa: E731
  assert first_update(ours, value_fn=loss) == first_update(by_hand, value_fn=loss)


def test_objective_chain_runs():
  made = spec.objective("cross_entropy() | z_error(tau=2) | group_dro(num_groups=2)")
  key = jax.random.key(0)
  batch = {
    "inputs": jnp.array([[0.1, 0.2], [0.3, 0.1], [0.2, 0.2], [0.0, 0.3]]),
    "labels": jnp.array([0, 1, 1, 0]),
    "group": jnp.array([0, 1, 0, 1]),
  }
  terms, _, _ = made.apply(made.init(key), lambda x: x, batch, key)
  assert np.isfinite(float(oracle.total(terms)))


def test_single_elements_are_returned_as_they_are():
  assert jax.tree.structure(optimizer("adam(1e-3)").init(PARAMS)) == jax.tree.structure(
    optax.adam(1e-3).init(PARAMS)
  )
  first_update(optimizer("clip(1.0)"), value=1.0, unused=None)  # extra arguments are taken


def test_names_of_ours_win_and_optax_keeps_its_dotted_names():
  loss = lambda params: jnp.sum(params["w"] ** 2)  # noqa: E731
  params = {"w": jnp.ones(2)}
  ours = spec.optimizer("sam()")
  ours.update(params, ours.init(params), params, value_fn=loss)
  assert first_update(spec.optimizer("optax.contrib.normalize()")) == first_update(
    optax.contrib.normalize()
  )
  assert "optimizer" in refusal(spec.optimizer, "optax.contrib.sam()")  # an argument of theirs


@pytest.mark.parametrize(
  ("text", "kernel"),
  [
    ("descent(8.0)", -8.0),  # steps=4 is filled in
    ("descent(8.0, 8)", -4.0),
    ("descent(8.0, steps=2 * steps)", -4.0),
    ("descent(2 ** 3 - 16 / 2 + -4 * -2)", -8.0),
    ("around(clip(1.0) | scale(3.0), keep(0.5)) | scale(2.0)", 3.0),
    ("around(uphill(2.0), keep=keep())", 8.0),
    ("uphill(2) | (scale(3.0) | scale(0.5))", 12.0),
    ("chain(uphill(2.0), scale(3.0))", 24.0),
    ("optax.sgd(optax.piecewise_constant_schedule(0.5, {1: 0.1}))", -2.0),
    ("sgd(join_schedules([linear_schedule(0.25, 0, 4), constant_schedule(9.0)], [steps]))", -1.0),
    ("partition({'all': sgd(0.5)}, {'dense': {'kernel': 'all', 'bias': 'all'}})", -2.0),
  ],
)
def test_values(text, kernel):
  assert first_update(optimizer(text, steps=4))[0] == kernel


@pytest.mark.parametrize(
  ("text", "expected"),  # labels are 0 and 1, the model returns its inputs 1 and 3
  [
    ("plain()", 1.5 + 10),
    ("plain(num_classes=0, scale=2.0)", 3.0),
    ("2 * plain(num_classes=0)", 3.0),
    ("plain(num_classes=0) * 2", 3.0),
    ("-plain(num_classes=0)", -1.5),
    ("remember()", 2.0 * 7),
    ("remember() + 2 * plain(num_classes=0)", 17.0),
    ("remember() - 2 * (plain(num_classes=0) + 0.5 * remember(1))", 14 - 2 * 2.5),
    ("2 * plain(num_classes=0) | weigh(3.0)", 9.0),
    ("shift(2.0) | plain(num_classes=0)", 3.5),
    ("shift(2.0) | shift(by=1) | plain(num_classes=0) + remember(1) | weigh() | weigh()", 38.0),
    ("(shift(2.0) | plain(num_classes=0)) + (remember(1) | weigh())", 7.5),
  ],
)
def test_objective_values(text, expected):
  assert scalar(objective(text, num_classes=10, num_examples=7)) == expected


def test_optax_losses_stand_in_specs():
  labels = ((1.0, 0.0), (0.0, 1.0))
  logits = ((1.0, 2.0), (3.0, 5.0))
  expected = np.mean([np.log1p(np.exp(1.0)), np.log1p(np.exp(-2.0))])
  made = objective("optax.losses.softmax_cross_entropy(axis=-1)")
  np.testing.assert_allclose(scalar(made, logits, labels), expected, rtol=1e-6)


# where=


def test_where_on_an_element_lets_the_rest_pass():
  assert first_update(optimizer("clip(1.0, where='kernel$')")) == (1.0, 5.0)
  assert first_update(optimizer("uphill(3.0, where='^dense/bias')")) == (4.0, 15.0)
  assert first_update(optimizer(r"clip(1.0, where='\w+/kernel') | scale(2.0)")) == (2.0, 10.0)


def test_where_on_a_recipe_freezes_the_rest():
  assert first_update(optimizer("sgd(0.5, where='kernel$')")) == (-2.0, 0.0)
  assert first_update(optimizer("descent(1.0, where='bias$')", steps=2)) == (0.0, -2.5)


def test_where_on_a_recipe_that_calls_its_learning_rate_otherwise():
  made = spec.optimizer("polyak_sgd(max_learning_rate=0.5, where='kernel$')")
  ones = optax.tree.ones_like(PARAMS)
  updates, _ = made.update(ones, made.init(PARAMS), PARAMS, value=jnp.asarray(9.0))
  assert jnp.all(updates["dense"]["bias"] == 0)
  assert jnp.all(updates["dense"]["kernel"] < 0)


def test_where_freezes_the_rest_when_a_learning_rate_is_inside():
  assert first_update(optimizer("around(sgd(0.5), where='kernel')")) == (-2.0, 0.0)
  assert first_update(optimizer("around(clip(1.0) | sgd(0.5), where='kernel')")) == (-0.5, 0.0)
  assert first_update(optimizer("around(clip(1.0), where='kernel')")) == (1.0, 5.0)


def test_where_reaches_closure_methods():
  made = spec.optimizer("sam(rho=0.5, where='kernel$')")
  loss = oracle.Oracle(lambda p: jnp.sum(p["dense"]["kernel"] ** 3) * p["dense"]["bias"][0], PARAMS)
  # The kernel moves by 0.5 * 4 / 8, the bias, 3, stays: 3 * (2 + 0.25)**2 * 3.
  assert first_update(made, value_fn=loss) == (pytest.approx(9 * 2.25**2), 5.0)


def test_where_of_a_function_that_has_one_is_its_own():
  assert first_update(optimizer("own_where(where='abc')")) == (12.0, 15.0)


def test_where_must_find_something():
  made = optimizer("sgd(0.5, where='kernal')")
  with pytest.raises(ValueError, match=r"'kernal' matches no parameter.*dense/bias, dense/kernel"):
    made.init(PARAMS)


# What specs refuse


@pytest.mark.parametrize(
  ("text", "part"),
  [
    ("clip_by_global_norm(1.0) | uphill()", "uphill throws away what stands before it"),
    ("scale(1.0) | (uphill() | scale(1.0))", "must come first"),
    ("chain(scale(1.0), uphill())", "must come first"),
    ("clip(1.0) | chain(uphill(), clip(1.0))", "must come first"),
    ("uphil()", "there is no uphil; did you mean uphill"),
    ("optax.adamm(1)", "optax.adam"),
    ("uphill(roh=1)", "'roh': uphill(rho=1.0)"),
    ("descent(1.0)", "missing a required argument: 'steps': descent(learning_rate, steps)"),
    ("uphill(1, rho=1)", "multiple values for argument 'rho'"),
    ("uphill(rho=1, rho=1)", "rho is given twice"),
    ("uphill(rho='1')", "rho takes a number; got '1': uphill(rho=1.0)"),
    ("clip(max_delta=[1.0])", "max_delta takes a number; got [1.0]"),
    ("clip(sgd(0.1))", "max_delta takes a number; sgd is a gradient transformation"),
    ("linear_onecycle_schedule(10**9, 1., [0, 1])", "pct_start takes a number"),
    ("uphill(rho=-1)", "uphill(rho=-1): rho must be at least 0, got -1"),
    ("uphill", "uphill needs brackets: uphill()"),
    ("around(uphill)", "uphill needs brackets"),
    ("norm(1)", "norm(tree) of trial_optimizers/descent.py cannot stand in a spec"),
    ("private()", "there is no private"),
    ("eval_params()", "there is no eval_params"),
    ("plain(num_classes=2)", "plain is a loss"),
    ("uphill() | plain(num_classes=2)", "optimizers and objectives do not chain"),
    ("keep()", "keep is a compressor"),
    ("linear_schedule(1., 0., 5)", "needs gradient transformations"),
    ("apply_updates({}, {})", "returns arrays: it cannot stand in a spec"),
    ("update_moment(1, 1, 1, 1)", "there is no update_moment"),
    ("3", "got 3"),
    ("uphill() | 3", "a chain joins calls, got 3"),
    ("uphill() + uphill()", "cannot compute"),
    ("descent(steps)", "steps is not known here"),
    ("clip(1.0, where='[')", "not a regular expression"),
    ("clip(1.0, where=1)", "where= must be a regular expression, got 1"),
    ("sgd(linear_schedule(1., 0., 5, where='a'))", "where= restricts gradient transformations"),
  ],
)
def test_wrong_optimizers(text, part):
  assert part in refusal(optimizer, text)


@pytest.mark.parametrize(
  ("text", "part"),
  [
    ("weigh()", "an objective needs one loss: weigh (loss transform)"),
    ("shift(1) | weigh()", "an objective needs one loss"),
    ("plain() | remember(1)", "join losses by +"),
    ("weigh() | plain()", "weigh is a loss transform: it cannot stand before the loss"),
    ("plain() | shift(1)", "shift is a batch transform: it cannot stand behind the loss"),
    ("plain() | keep()", "keep is a compressor"),
    ("plain() | sgd(0.1)", "do not chain"),
    ("sgd(0.1)", "an objective needs one loss; sgd is a gradient transformation"),
    ("plain", "plain needs brackets"),
    ("plain(1.0)", "arrays come from batch and model"),
    ("plain(labels=1)", "unexpected keyword argument 'labels'"),
    ("plain(where='a')", "where= restricts gradient transformations"),
    ("plain() * remember(1)", "cannot compute"),
    ("plain() + 1", "cannot compute"),
    ("plain() + weigh()", "cannot compute"),
    ("plain() / 2", "cannot compute"),
    ("foreign()", "nothing gives it other"),
    ("smooth_labels()", "nothing gives it alpha"),
  ],
)
def test_wrong_objectives(text, part):
  assert part in refusal(objective, text, num_classes=2)


HOSTILE = (
  "__import__('os').system('x')",
  "().__class__.__bases__",
  "adam.__globals__",
  "optax.adam.__globals__",
  "optax.adam.__call__(1)",
  "optax.contrib._sam.sam()",
  "sgd.__wrapped__(0.1)",
  "sgd(0.1).init",
  "sgd(0.1).init({})",
  "sgd(0.1)(1)",
  "eval('1')",
  "open('x')",
  "print",
  "lambda: 1",
  "[x for x in (1,)]",
  "{x: 1 for x in (1,)}",
  "(x := 1)",
  "sgd(learning_rate := 1)",
  "f'{1}'",
  "sgd(f'{1}')",
  "(1, 2)[0]",
  "sgd([0.1][0])",
  "sgd(*[0.1])",
  "sgd(**{'learning_rate': 1})",
  "{**{}}",
  "{1, 2}",
  "{[]: 1}",
  "1 if 1 else 2",
  "1 < 2",
  "1 and 2",
  "not 1",
  "+1",
  "~1",
  "7 // 2",
  "7 % 2",
  "1 << 9999999999",
  "sgd(1j)",
  "sgd(b'1')",
  "sgd(...)",
  "sgd(1e999)",
  "sgd(10 ** 10 ** 10)",
  "sgd(9.0 ** 9999)",
  "sgd((-8) ** 0.5)",
  "sgd(1 / 0)",
  "sgd('a' * 10)",
  "sgd([0] * 10)",
  "sgd(True + 1)",
  "sgd(0.1",
  "sgd(0.1))",
  "sgd(0.1]",
  "sgd(0.1) sgd(0.1)",
  "sgd(0.1); sgd(0.1)",
  "import os",
  "x = 1",
  "await x",
  "yield 1",
  "",
  " ",
  "#",
  "\0",
  "sgd(0.1)\0",
  "\ud800",
  "0x" + "f" * 1990,
  "f(0x" + "f" * 1990 + ")",
  "9" * 1999,
  "9" * 100_000,
  "-" * 1990 + "1",
  "-" * 150 + "1",
  "(" * 1999,
  "(" * 150 + "1" + ")" * 150,
  "[" * 150 + "]" * 150,
  "a" + ".a" * 900,
  "a" + "()" * 900,
  "1" + "**1" * 600,
  "1" + "|1" * 900,
  "a(" * 180 + ")" * 180,
)


@pytest.fixture(scope="module")
def events():
  """Audit events that reading a spec must not cause, gathered while `events.watch`."""
  watched = {"exec", "open", "os.system", "subprocess.Popen", "socket.connect", "import"}

  class Events(list):
    watch = False

  gathered = Events()

  def hook(event, arguments):
    if gathered.watch and event in watched:
      gathered.append((event, arguments))

  sys.addaudithook(hook)  # stays for good: the interpreter has no way to remove it
  optimizer("uphill() | descent(1.0, 2)")
  for text in ("clip(1.0)", "smm()"):
    with pytest.raises(spec.SpecError):
      objective(text)
  gathered.watch = True
  exec("")
  assert gathered  # the hook works
  yield gathered
  gathered.watch = False


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: ascii(text[:20]))
@pytest.mark.parametrize("read", [optimizer, objective], ids=["optimizer", "objective"])
def test_hostile_text_is_refused_without_doing_anything(text, read, events):
  events.clear()
  events.watch = True
  try:
    refusal(read, text)
  finally:
    events.watch = False
  assert not events


def test_only_functions_of_optax_are_reachable():
  reachable = spec._optax_functions().values()
  modules = {getattr(function, "func", function).__module__ for function in reachable}
  assert all(module.split(".")[0] == "optax" for module in modules)


# Fuzzing: SpecError and nothing else

VALID = (
  "uphill(rho=0.05) | clip_by_global_norm(1.0) | adamw(cosine_decay_schedule(1e-3, steps))",
  "around(clip(1.0) | sgd(0.5), keep=keep(2), where='kernel$') | descent(0.1)",
  "sgd(piecewise_constant_schedule(0.5, {10: 0.1, 20: -2 ** 3}))",
  "shift(2.0) | 2 * plain(scale=-1) - 0.5 * remember(num_examples) | weigh(weight=2)",
  "optax.losses.softmax_cross_entropy(axis=-1) | weigh()",
)
FRAGMENTS = (
  *("uphill", "descent", "keep", "plain", "weigh", "shift", "remember", "norm", "adam", "steps"),
  *("optax", ".contrib", ".sam", ".losses", "__import__", "__class__", "where", "lambda", "x"),
  *("(", ")", "()", "[", "]", "{", "}", ",", ":", "=", ":=", ".", "|", "+", "-", "*", "**", "/"),
  *("1", "0.5", "1e99", "True", "None", "'a'", "'['", '"', "\\", "\n", " ", "f'", "\0", "é", "#"),
)
within_bounds = hypothesis.settings(
  max_examples=300,
  deadline=datetime.timedelta(seconds=5),
  suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)


def only_spec_errors(text):
  for read in (optimizer, objective):
    try:
      read(text, steps=10, num_classes=3, num_examples=5)
    except spec.SpecError as error:
      assert len(str(error).splitlines()) == 1


@within_bounds
@hypothesis.given(st.text(max_size=200))
def test_random_text(text):
  only_spec_errors(text)


@within_bounds
@hypothesis.given(st.lists(st.sampled_from(FRAGMENTS), max_size=20))
def test_random_fragments(fragments):
  only_spec_errors("".join(fragments))


@within_bounds
@hypothesis.given(st.sampled_from(VALID), st.data())
def test_mutated_specs(text, data):
  for _ in range(data.draw(st.integers(1, 4))):
    at = data.draw(st.integers(0, len(text)))
    removed = data.draw(st.integers(0, 6))
    text = text[:at] + data.draw(st.sampled_from(("", *FRAGMENTS))) + text[at + removed :]
  only_spec_errors(text)


@within_bounds
@hypothesis.given(st.sampled_from(VALID), st.data())
def test_specs_with_another_value(text, data):
  """Every literal of a valid spec, replaced by something of another type or size."""
  tree = ast.parse(text, mode="eval")
  literals = [node for node in ast.walk(tree) if isinstance(node, ast.Constant)]
  chosen = data.draw(st.sampled_from(literals)) if literals else None
  if chosen is not None:
    chosen.value = data.draw(st.none() | st.booleans() | st.integers() | st.floats() | st.text())
  only_spec_errors(ast.unparse(tree))


# The catalogue


def test_the_catalogue_reads_files_without_importing_them():
  entries = {entry.name: entry for entry in catalogue.catalogue(PACKAGES)}
  assert {name: entry.kind for name, entry in entries.items()} == {
    "uphill": "gradient transformation",
    "descent": "gradient transformation",
    "around": "gradient transformation",
    "own_where": "gradient transformation",
    "norm": "function",
    "keep": "compressor",
    "plain": "loss",
    "foreign": "loss",
    "broken": "batch transform",
    "weigh": "loss transform",
    "shift": "batch transform",
    "remember": "objective",
  }
  uphill = entries["uphill"]
  assert uphill.file == "trial_optimizers/uphill.py"
  assert uphill.module == "trial_optimizers.uphill"
  assert uphill.summary == "Climbs."
  assert uphill.signature == "uphill(rho=1.0)"
  assert uphill.replaces_gradient and not entries["descent"].replaces_gradient
  assert entries["norm"].identifiers >= {"tree", "_square"}


def test_the_catalogue_imports_neither_jax_nor_optax():
  code = (
    "import sys; from jaxrl.catalogue import catalogue; assert catalogue();"
    "assert not {'jax', 'optax', 'numpy'} & set(sys.modules)"
  )
  subprocess.run([sys.executable, "-c", code], check=True)


def test_names_are_unique_and_hide_nothing_of_optax():
  assert catalogue.duplicates() == {}
  assert spec.clashes() == []


def test_duplicates_and_clashes_are_found(tmp_path, monkeypatch):
  body = "import optax\ndef {}() -> optax.GradientTransformation: ..."
  files = {
    "clash/__init__.py": "",
    "clash/a.py": body.format("twice"),
    "clash/b/c.py": body.format("twice"),
    "clash/adam.py": body.format("adam"),
    "clash/sam.py": body.format("sam"),
  }
  monkeypatch.syspath_prepend(str(write(tmp_path, files)))
  assert catalogue.duplicates(("clash",)) == {"twice": ["clash/a.py", "clash/b/c.py"]}
  assert spec.clashes(("clash",)) == ["adam"]
  read = functools.partial(spec.optimizer, packages=("clash",))
  assert refusal(read, "twice()") == "twice is ambiguous: clash/a.py, clash/b/c.py"


def test_unknown_names_and_packages_are_mistakes_of_the_caller():
  with pytest.raises(TypeError, match="names must be among"):
    spec.optimizer("sgd(0.1)", step=3)
  with pytest.raises(ValueError, match="no package 'nowhere'"):
    spec.optimizer("sgd(0.1)", packages=("nowhere",))
