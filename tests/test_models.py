"""Each model: shapes and sizes, what training alone changes, and that it learns."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrl import models, oracle, parallel, train
from objectives.classification.cross_entropy import cross_entropy

CLASSES = 3
LENGTH = 6
MODULES = {
  "cnn": models.Cnn(CLASSES, channels=(4, 8)),
  "mlp": models.Mlp(CLASSES, widths=(8,)),
  "resnet": models.ResNet(CLASSES, widths=(4, 8)),
  "resnet_gn": models.ResNet(CLASSES, widths=(4, 8), norm="group"),
  "transformer": models.Transformer(CLASSES, max_length=LENGTH, width=8, depth=1, heads=2),
  "vit": models.Vit(CLASSES, patch=2, width=8, depth=1, heads=2),
}


def inputs_of(name, size=4, seed=0):
  rng = np.random.default_rng(seed)
  if name == "transformer":
    return rng.integers(0, CLASSES, (size, LENGTH)).astype(np.int32)
  return rng.normal(size=(size, 4, 6, 2)).astype(np.float32)


@functools.cache
def ready(name):
  """The compiled model of a name, its first parameters and its first state."""
  model = models.from_flax(MODULES[name])
  params, state = jax.jit(model.init)(jax.random.key(0), inputs_of(name, 1))
  return jax.jit(model.apply, static_argnums=4), params, state


def outputs(name, inputs, train=False, key=0):
  apply, params, state = ready(name)
  return apply(params, state, inputs, jax.random.key(key), train)


def token_loss(logits, targets):
  return optax.softmax_cross_entropy_with_integer_labels(logits, targets)


def learning(name):
  """A train step that learns a batch by heart, and the batch."""
  inputs = inputs_of(name, 8)
  shape = inputs.shape if name == "transformer" else inputs.shape[:1]
  column = "targets" if name == "transformer" else "labels"
  answers = np.random.default_rng(1).integers(0, CLASSES, shape).astype(np.int32)
  batch = {"inputs": inputs, column: answers, "mask": np.ones(8, np.float32)}
  loss = token_loss if name == "transformer" else cross_entropy
  model = models.from_flax(MODULES[name].clone(**dropout_of(name, 0.0)))
  return train.make_train(model, oracle.lift(loss), optax.adam(1e-2), jnp.asarray(inputs)), batch


def dropout_of(name, rate):
  return {"dropout": rate} if hasattr(MODULES[name], "dropout") else {}


@pytest.mark.parametrize("name", MODULES)
def test_outputs_have_a_row_for_each_example_or_token(name):
  inputs = inputs_of(name)
  leading = inputs.shape if name == "transformer" else inputs.shape[:1]
  assert outputs(name, inputs)[0].shape == (*leading, CLASSES)


@pytest.mark.parametrize("name", MODULES)
def test_a_model_can_show_what_its_last_layer_sees(name):
  inputs, (_, params, state) = inputs_of(name), ready(name)
  apply = models.from_flax(MODULES[name].clone(show_features=True)).apply
  shown, _ = jax.jit(apply, static_argnums=4)(params, state, inputs, jax.random.key(0), False)
  last = params[max(layer for layer in params if layer.startswith("Dense"))]
  chex.assert_trees_all_close(shown["logits"], outputs(name, inputs)[0], atol=1e-5)
  chex.assert_trees_all_close(
    shown["features"] @ last["kernel"] + jnp.broadcast_to(last["bias"], shown["logits"].shape),
    shown["predictions"],
    atol=1e-5,
  )


def size_of(module, inputs):
  """The number of parameters, without computing any."""
  init = functools.partial(models.from_flax(module).init, jax.random.key(0))
  return sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(init, inputs)[0]))


def test_resnet_20_has_the_size_of_the_paper():
  # He et al. (2016), table 6: 0.27 million; our shortcuts are convolutions, 2560 weights more.
  for norm in ("batch", "group"):
    module = models.ResNet(10, blocks=3, norm=norm)
    assert round(size_of(module, jnp.zeros((1, 32, 32, 3))) / 1e6, 2) == 0.27


@pytest.mark.parametrize(("name", "depth"), [("vit", 4), ("transformer", 2)])
def test_a_block_has_twelve_times_the_square_of_its_width(name, depth):
  width, classes = 64, 10
  images, tokens = jnp.zeros((1, 8, 8, 1)), jnp.zeros((1, 8), jnp.int32)
  inputs = tokens if name == "transformer" else images
  embedding = (classes + 256) * width if name == "transformer" else (5 + 16) * width
  # Attention, two dense layers and two norms with their biases; the last norm and layer.
  block = 4 * width * (width + 1) + 8 * width**2 + 5 * width + 4 * width
  expected = embedding + depth * block + 2 * width + classes * (width + 1)
  assert size_of(models.MODELS[name](classes), inputs) == expected


@pytest.mark.parametrize("name", MODULES)
def test_every_name_makes_a_model_of_moderate_size(name):
  inputs = jnp.zeros((1, 16), jnp.int32) if name == "transformer" else jnp.zeros((1, 8, 8, 1))
  assert 1e4 < size_of(models.MODELS[name](10), inputs) < 3e5
  assert {*MODULES, "resnet_int4"} == set(models.MODELS)


@pytest.mark.parametrize("name", ["cnn", "resnet"])
def test_only_training_updates_batch_statistics(name):
  _, _, state = ready(name)
  inputs = inputs_of(name)
  chex.assert_trees_all_equal(outputs(name, inputs, train=False)[1], state)
  after = outputs(name, inputs, train=True)[1]
  for old, new in zip(jax.tree.leaves(state), jax.tree.leaves(after), strict=True):
    assert np.all(np.isfinite(new))
    assert not np.allclose(old, new)


def test_examples_are_independent_under_group_norm():
  inputs = inputs_of("resnet_gn")
  assert ready("resnet_gn")[2] == {}
  whole = outputs("resnet_gn", inputs, train=True)[0]
  alone = outputs("resnet_gn", inputs[:1], train=True)[0]
  np.testing.assert_allclose(whole[:1], alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", [name for name in MODULES if dropout_of(name, 0)])
def test_only_training_draws_dropout(name):
  inputs = inputs_of(name)
  np.testing.assert_array_equal(outputs(name, inputs, key=1)[0], outputs(name, inputs, key=2)[0])
  first, second = (outputs(name, inputs, train=True, key=key)[0] for key in (1, 2))
  assert not np.allclose(first, second)


def test_vit_sees_where_a_patch_is():
  inputs = inputs_of("vit")
  # Mirrored by whole patches: the same tokens at other positions.
  moved = inputs.reshape(4, 4, 3, 2, 2)[:, :, ::-1].reshape(inputs.shape)
  assert np.abs(outputs("vit", inputs)[0] - outputs("vit", moved)[0]).max() > 1e-4
  apply, params, state = ready("vit")
  nowhere = {**params, "positions": jnp.zeros_like(params["positions"])}
  still, other = (apply(nowhere, state, x, jax.random.key(0), False)[0] for x in (inputs, moved))
  np.testing.assert_allclose(still, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("position", [1, LENGTH - 1])
def test_transformer_does_not_see_later_tokens(position):
  inputs = inputs_of("transformer")
  changed = inputs.copy()
  changed[:, position] = (changed[:, position] + 1) % CLASSES
  before, after = outputs("transformer", inputs)[0], outputs("transformer", changed)[0]
  np.testing.assert_array_equal(before[:, :position], after[:, :position])
  assert np.all(np.abs(before - after)[:, position:].max(axis=(0, 2)) > 1e-5)


@pytest.mark.full
@pytest.mark.parametrize("name", ["resnet", "resnet_gn", "transformer", "vit"])
def test_learns_a_batch_by_heart(name):
  parts, batch = learning(name)
  state, step = jax.jit(parts.init)(0), jax.jit(parts.step)
  losses = []
  for _ in range(30):
    state, metrics = step(state, batch)
    losses.append(float(metrics["loss"]))
  assert losses[-1] < 0.6 * losses[0]


@pytest.mark.full
def test_transformer_continues_a_sequence_that_it_has_learned():
  text = np.array([[0, 1, 1, 2, 0, 2, 2]], np.int32)
  module = MODULES["transformer"].clone(width=16, dropout=0.0)
  model = models.from_flax(module)
  batch = {"inputs": text[:, :-1], "targets": text[:, 1:], "mask": np.ones(1, np.float32)}
  objective, optimizer = oracle.lift(token_loss), optax.adam(1e-2)
  parts = train.make_train(model, objective, optimizer, jnp.asarray(batch["inputs"]))

  @jax.jit
  def trained(state):
    return jax.lax.fori_loop(0, 60, lambda _, state: parts.step(state, batch)[0], state)

  params = trained(parts.init(0)).params
  logits, _ = model.apply(params, {}, batch["inputs"], jax.random.key(0), False)
  np.testing.assert_array_equal(jnp.argmax(logits, axis=-1), batch["targets"])


@pytest.mark.parametrize("name", ["resnet", "resnet_gn", "transformer", "vit"])
def test_computes_in_bfloat16(name):
  apply, params, state = ready(name)
  inputs = inputs_of(name)
  half = functools.partial(jax.tree.map, lambda x: x.astype(jnp.bfloat16))
  low = inputs if name == "transformer" else half(inputs)
  result, _ = apply(half(params), state, low, jax.random.key(0), False)
  assert result.dtype == jnp.bfloat16
  exact = outputs(name, inputs)[0]
  np.testing.assert_allclose(result.astype(jnp.float32), exact, rtol=0.1, atol=0.05)


@pytest.mark.full
def test_a_sharded_step_is_that_of_one_device():
  parts, batch = learning("resnet")
  results = []
  for mesh in (None, parallel.make_mesh("data=4,fsdp=2")):
    program = parallel.lay_out(parts, mesh, None, 0)
    results.append(program.step(program.init(0), program.place(batch)))
  (alone, metrics), (sharded, sharded_metrics) = results
  chex.assert_trees_all_close(sharded.model, alone.model, rtol=1e-4, atol=1e-5)
  assert float(sharded_metrics["loss"]) == pytest.approx(float(metrics["loss"]), rel=1e-5)
  # Adam's first step has the size of its rate whatever the gradient: compare the gradient.
  gradients = [state.optimizer[0].mu for state in (sharded, alone)]
  chex.assert_trees_all_close(*gradients, rtol=1e-3, atol=1e-6)


WRONG = {
  "rows": ("resnet", np.zeros((2, 10), np.float32), "resnet needs images"),
  "rows for vit": ("vit", np.zeros((2, 10), np.float32), "vit needs images"),
  "rows for cnn": ("cnn", np.zeros((2, 10), np.float32), "cnn needs images"),
  "odd patches": ("vit", np.zeros((2, 8, 7, 1), np.float32), "multiples of its patch of 2"),
  "images": ("transformer", np.zeros((2, 8, 8, 1), np.int32), r"tokens \[B, T\]"),
  "floats": ("transformer", np.zeros((2, 8), np.float32), "got float32"),
  "too many tokens": ("transformer", np.zeros((2, 7), np.int32), "max_length 6, got 7 tokens"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_inputs_are_named(case):
  name, inputs, message = WRONG[case]
  with pytest.raises(ValueError, match=message):
    models.from_flax(MODULES[name]).init(jax.random.key(0), inputs)


def test_wrong_names_are_named():
  with pytest.raises(ValueError, match="norm must be one of"):
    models.ResNet(3, norm="layer")
  with pytest.raises(ValueError, match=r"model must be one of \['cnn'"):
    models.make("lenet", 3)
