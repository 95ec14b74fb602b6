"""Values of SAM's variants and masks against official code, NumPy and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrl import spec
from optimizers._sharpness import Mask, scaled_to
from optimizers.fisher_mask import fisher_mask
from optimizers.norm_layer_mask import norm_layer_mask
from optimizers.sam import sam
from tests import values


def close(actual, expected, tolerance=1e-8):
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance), actual, expected
  )


def half_square(params):
  """A loss whose gradient anywhere is the point itself."""
  return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(params)) / 2


def perturbation(optimizer, gradient, params, **extras):
  """By how much `optimizer` moves away from the parameters, `gradient` coming in."""
  updates, _ = optimizer.update(
    gradient, optimizer.init(params), params, value_fn=half_square, **extras
  )
  return jax.tree.map(jnp.subtract, updates, params)


# Twenty-four steps of official code.


def network_loss(params, inputs, labels):
  x = inputs @ params["embed"]["kernel"] @ params["first"]["kernel"]
  x = x + params["first"]["bias"][None]
  x = jax.nn.standardize(x, epsilon=1e-6)
  x = jnp.tanh(x * params["norm"]["scale"][None] + params["norm"]["bias"][None])
  logits = x @ params["second"]["kernel"] + params["second"]["bias"][None]
  return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))


def assert_official(optimizer, golden, run):
  """Whether the optimizer's losses and parameters are those of a golden run."""

  @jax.jit
  def step(params, state, inputs, labels):
    def loss(params):
      return network_loss(params, inputs, labels)

    value, grad = jax.value_and_grad(loss)(params)
    updates, state = optimizer.update(grad, state, params, value_fn=loss)
    return optax.apply_updates(params, updates), state, value

  with jax.enable_x64(True):
    params, losses = jax.tree.map(jnp.asarray, run["start"]), []
    state = optimizer.init(params)
    for inputs, labels in zip(golden["inputs"], golden["labels"], strict=True):
      params, state, loss = step(params, state, inputs, labels)
      losses.append(float(loss))
  assert len(losses) >= 20
  close(np.array(losses), run["losses"])
  close(params, run["end"])


def decayed_sgd(first):
  return optax.chain(first, optax.add_decayed_weights(0.01), optax.sgd(0.1, momentum=0.9))


@pytest.mark.parametrize(("name", "adaptive"), [("asam", True), ("asam_far", True), ("sam", False)])
def test_sam_is_the_official_asam_for_twenty_four_steps(name, adaptive):
  golden = values.load("asam")
  run = golden[name]
  options = {"eta": run["eta"]} if adaptive else {}
  optimizer = sam(run["rho"], eps=1e-16, adaptive=adaptive, **options)
  assert_official(decayed_sgd(optimizer), golden, run)


@pytest.mark.parametrize("name", ["sam", "asam", "asam_biases", "asam_rest"])
def test_norm_layer_mask_is_the_official_sam_on_for_twenty_four_steps(name):
  golden = values.load("norm_layer_mask")
  run = golden[name]
  mask = norm_layer_mask("^(?!.*norm)") if run.get("no_norm") else norm_layer_mask()
  adaptive = {"adaptive": name != "sam", "adaptive_bias": run.get("normalize_bias", False)}
  optimizer = sam(run["rho"], eps=1e-16, eta=run.get("eta", 0), mask=mask, **adaptive)
  assert_official(decayed_sgd(optimizer), golden, run)


def test_fisher_mask_is_the_official_one_for_twenty_four_steps():
  golden = values.load("fisher_mask")
  optimizer = sam(golden["rho"], eps=1e-7, mask=fisher_mask(golden["keep"], every=golden["every"]))
  assert_official(optax.chain(optimizer, optax.adam(golden["learning_rate"])), golden, golden)


# SAM by hand.

WEIGHTS = {"kernel": jnp.array([3.0, -0.5, 0.0, 2.0]), "bias": jnp.array([-4.0, 1.0])}
GRADIENT = {"kernel": jnp.array([1.0, -2.0, 0.5, 4.0]), "bias": jnp.array([2.0, 0.0])}
FLAT, SLOPE = (np.concatenate([tree["kernel"], tree["bias"]]) for tree in (WEIGHTS, GRADIENT))


def as_tree(flat):
  return {"kernel": flat[:4], "bias": flat[4:]}


def test_sam_with_several_ascent_steps_is_the_opaque_one_of_optax_for_twenty_steps():
  golden = values.load("asam")
  inputs, labels = golden["inputs"][0], golden["labels"][0]

  def loss(params):
    return network_loss(params, inputs, labels)

  ascent = optax.chain(optax.contrib.normalize(), optax.sgd(0.2))
  ours = optax.chain(sam(0.2, ascent_steps=3), optax.adam(0.05))
  theirs = optax.contrib.sam(optax.adam(0.05), ascent, sync_period=4, opaque_mode=True)

  def run(optimizer, **extras):
    def step(carry, _):
      params, state = carry
      updates, state = optimizer.update(jax.grad(loss)(params), state, params, **extras)
      return (optax.apply_updates(params, updates), state), None

    start = jax.tree.map(jnp.asarray, golden["asam"]["start"])
    carry, _ = jax.lax.scan(step, (start, optimizer.init(start)), length=20)
    return carry[0]

  with jax.enable_x64(True):
    expected = run(theirs, grad_fn=lambda params, _: jax.grad(loss)(params))
    close(run(ours, value_fn=loss), expected)


@pytest.mark.parametrize(
  ("options", "scales"),
  [
    ({}, np.ones(6)),
    ({"adaptive": True}, np.array([3.01, 0.51, 0.01, 2.01, 1, 1])),
    ({"adaptive": True, "eta": 0, "adaptive_bias": True}, np.abs(FLAT)),
  ],
)
def test_sam_scales_its_perturbation(options, scales):
  scaled = scales * SLOPE
  length = np.linalg.norm(scaled)
  for normalize, extras, divisor in (
    ("own", {}, length),
    ("none", {}, 1),
    ("given", {"gradient_norm": 5.0}, 5),
  ):
    made = perturbation(sam(0.3, normalize=normalize, **options), GRADIENT, WEIGHTS, **extras)
    close(made, as_tree(0.3 * scales * scaled / divisor), tolerance=1e-6)


def test_sam_that_adapts_does_not_depend_on_the_scale_of_a_parameter():
  stretch = jnp.array([2.0, 0.1, 5.0, 1.0])
  params, gradient = WEIGHTS["kernel"], GRADIENT["kernel"]
  optimizer = sam(0.3, adaptive=True, eta=0)
  here = perturbation(optimizer, gradient, params)
  there = perturbation(optimizer, stretch * gradient, params / stretch)
  close(here, stretch * there, tolerance=1e-6)


@pytest.mark.parametrize(("rho", "falls"), [(0.7, True), (0.85, False)])
def test_sam_without_normalisation_is_stable_up_to_the_known_rate(rho, falls):
  rate, curvature = 0.2, 3.0  # stable where rate * curvature * (1 + rho * curvature) < 2
  optimizer = optax.chain(sam(rho, normalize="none"), optax.sgd(rate))
  loss = lambda w: curvature / 2 * w**2  # noqa: E731

  def step(carry, _):
    w, state = carry
    updates, state = optimizer.update(jax.grad(loss)(w), state, w, value_fn=loss)
    return (w + updates, state), w

  start = jnp.array(1.0)
  _, path = jax.lax.scan(step, (start, optimizer.init(start)), length=20)
  factor = 1 - rate * curvature * (1 + rho * curvature)
  np.testing.assert_allclose(path, factor ** np.arange(20), rtol=1e-4)
  assert (abs(path[-1]) < 1) == falls


@pytest.mark.parametrize(
  "options",
  [
    {"adaptive": True},
    {"eps": 0},
    {"normalize": "none"},
    {"normalize": "given", "eps": 0},
    {"ascent_steps": 2},
    {"mask": fisher_mask()},
    {"mask": norm_layer_mask("bias")},
  ],
)
def test_sam_leaves_a_point_without_gradient_where_it_is(options):
  extras = {"gradient_norm": 0.0} if options.get("normalize") == "given" else {}
  still = jax.tree.map(jnp.zeros_like, WEIGHTS)
  assert not any(
    np.any(e) for e in jax.tree.leaves(perturbation(sam(0.5, **options), still, still, **extras))
  )


def test_sam_takes_the_norm_of_bfloat16_in_float32():
  ones = jnp.ones(258, jnp.bfloat16)  # in bfloat16 their norm, 16.062, would be 16
  made = perturbation(sam(1.002 * np.sqrt(258)), ones, 0 * ones)
  assert made.dtype == jnp.bfloat16
  np.testing.assert_array_equal(made.astype(np.float32), 1)


@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30])
def test_lengths_are_exact_for_gradients_of_any_size(size):
  made = scaled_to({"w": jnp.full(258, size, jnp.bfloat16)}, 2.0, 0.0)["w"]
  assert made.dtype == jnp.float32
  np.testing.assert_allclose(made, 2 / np.sqrt(258), rtol=1e-6)


# Masks by hand.


def constant(chosen, whole_norm=False):
  return Mask(lambda params: (), lambda *_: (chosen, ()), whole_norm)


@pytest.mark.parametrize("whole_norm", [False, True])
def test_sam_perturbs_what_its_mask_chooses(whole_norm):
  chosen = {"kernel": jnp.array([True, False, True, False]), "bias": True}
  kept = SLOPE * [1, 0, 1, 0, 1, 1]
  norm = np.linalg.norm(SLOPE if whole_norm else kept)
  made = perturbation(sam(0.3, mask=constant(chosen, whole_norm)), GRADIENT, WEIGHTS)
  close(made, as_tree(0.3 * kept / norm), tolerance=1e-6)


def test_sam_whose_mask_chooses_nothing_perturbs_nothing():
  made = perturbation(sam(mask=constant({"kernel": False, "bias": False})), GRADIENT, WEIGHTS)
  assert not any(np.any(e) for e in jax.tree.leaves(made))


@pytest.mark.parametrize(
  ("chosen", "message"),
  [
    ({"kernel": True}, "mask must choose in the structure of the parameters, PyTreeDef("),
    ({"kernel": jnp.ones(3, bool), "bias": True}, r"entry \(4,\) .* got bool\[3\]"),
    ({"kernel": jnp.ones(4), "bias": True}, r"one boolean .* got float32\[4\]"),
  ],
)
def test_a_mask_that_does_not_fit_is_refused(chosen, message):
  with pytest.raises(ValueError, match=message.replace("PyTreeDef(", r"PyTreeDef\(")):
    perturbation(sam(mask=constant(chosen)), GRADIENT, WEIGHTS)


def test_a_given_norm_has_to_be_given():
  with pytest.raises(ValueError, match=r"call update\(\.\.\., gradient_norm=\.\.\.\)"):
    perturbation(sam(normalize="given"), GRADIENT, WEIGHTS)


def test_norm_layer_mask_knows_the_names_of_normalisation_layers():
  layers = {"BatchNorm_0": True, "LayerNorm_3": True, "GroupNorm_1": True, "RMSNorm_0": True}
  layers |= {"bn1": True, "block_bn": True, "norm": True, "batch_norm": True}
  layers |= {"Dense_0": False, "Conv_0": False, "subnet": False, "Embed_0": False}
  params = {layer: {"scale": jnp.ones(2), "bias": jnp.ones(2)} for layer in layers}
  chosen, _ = norm_layer_mask().update(params, (), params)
  assert chosen == {layer: {"scale": known, "bias": known} for layer, known in layers.items()}


def test_norm_layer_mask_without_such_a_layer_is_refused():
  with pytest.raises(ValueError, match=r"matches no parameter to perturb; there are \['bias'"):
    sam(mask=norm_layer_mask()).init(WEIGHTS)


@pytest.mark.parametrize("keep", [0, 0.1, 0.29, 0.5, 1])
@pytest.mark.parametrize("equal", [False, True])
def test_fisher_mask_keeps_the_largest_by_sorting(keep, equal):
  rng = np.random.default_rng(0)
  shapes = {"a": (7, 5), "bias": (3,), "c": (), "d": (0, 2), "e": (4, 8)}
  draw = (
    (lambda shape: rng.integers(-2, 3, shape)) if equal else (lambda shape: rng.normal(size=shape))
  )
  gradient = {name: jnp.asarray(draw(shape), jnp.float32) for name, shape in shapes.items()}
  mask = fisher_mask(keep)
  chosen, _ = mask.update(gradient, mask.init(gradient), gradient)
  assert np.all(chosen["bias"])
  flat = np.concatenate([np.square(gradient[name]).ravel() for name in "acde"])
  best = np.argsort(-flat, kind="stable")[: int(keep * flat.size)]
  made = np.concatenate([np.ravel(chosen[name]) for name in "acde"])
  np.testing.assert_array_equal(np.flatnonzero(made), np.sort(best))


def test_fisher_mask_scales_by_the_norm_of_the_whole_gradient():
  made = perturbation(sam(0.3, mask=fisher_mask(0.5)), GRADIENT, WEIGHTS)
  close(made, as_tree(0.3 * SLOPE * [0, 1, 0, 1, 1, 1] / np.linalg.norm(SLOPE)), tolerance=1e-6)


def test_fisher_mask_chooses_anew_every_so_many_steps():
  mask = fisher_mask(0.25, every=3, exclude="^$")
  params = {"w": jnp.zeros(4)}
  state, found = mask.init(params), []
  for step in range(7):
    chosen, state = mask.update({"w": jnp.eye(4)[step % 4]}, state, params)
    found += np.flatnonzero(chosen["w"]).tolist()
  assert found == [0, 0, 0, 3, 3, 3, 2]


@pytest.mark.parametrize("second", ["sam()", "sam(mask=fisher_mask())"])
def test_sam_in_second_place_is_refused(second):
  with pytest.raises(spec.SpecError, match="sam throws away what stands before it"):
    spec.optimizer(f"clip_by_global_norm(1.0) | {second} | sgd(0.1)")


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("norm_layer_mask()", "norm_layer_mask is a mask"),
    ("sam(mask=norm_layer_mask)", r"needs brackets: norm_layer_mask\(\)"),
    ("sam(mask=top_k(1))", "mask must be a Mask, got Compressor"),
  ],
)
def test_specs_tell_masks_from_other_parts(text, message):
  with pytest.raises(spec.SpecError, match=message):
    spec.optimizer(text)
