"""Values of reparameterisations, orthonormality and direct feedback alignment.

Against PyTorch's weight normalization, the official code of direct feedback alignment, NumPy
and numbers by hand.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrl import models
from optimizers.dfa import dfa, dfa_alignment, dfa_feedback, dfa_network
from optimizers.orthonormal import modulated, orthonormal, orthonormality, orthonormalized
from optimizers.reparameterized import reparameterized
from optimizers.weights.weight_compander import Companded, weight_compander
from optimizers.weights.weight_norm import Polar, weight_norm
from tests import values

RNG = np.random.default_rng(0)
KEY = jax.random.key(0)
BOTH = pytest.mark.parametrize(
  ("wide", "tolerance"), [(False, 1e-5), (True, 1e-9)], ids=["float32", "float64"]
)


def close(actual, expected, tolerance=1e-5):
  def compare(a, e):
    np.testing.assert_allclose(a, e, rtol=tolerance, atol=tolerance)

  jax.tree.map(compare, actual, expected)


def cross_entropy(logits, labels):
  return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))


# weight_norm


def images_to_logits(params, images):
  x = jax.lax.conv_general_dilated(
    images, params["conv"]["kernel"], (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
  )
  x = jnp.tanh(x + params["conv"]["bias"][None, None, None]).mean(axis=(1, 2))
  return x @ params["dense"]["kernel"] + params["dense"]["bias"][None]


@BOTH
def test_weight_norm_is_that_of_pytorch_for_twenty_five_steps(wide, tolerance):
  golden = values.load("weight_norm")
  with jax.enable_x64(wide):
    images, labels = jnp.asarray(golden["images"]), jnp.asarray(golden["labels"])
    inner = optax.sgd(golden["learning_rate"], momentum=golden["momentum"])
    optimizer = reparameterized(inner, weight_norm())

    def loss(params):
      return cross_entropy(images_to_logits(params, images), labels)

    @jax.jit
    def step(params, state):
      value, gradient = jax.value_and_grad(loss)(params)
      updates, state = optimizer.update(gradient, state, params)
      return optax.apply_updates(params, updates), state, value

    params, losses = jax.tree.map(jnp.asarray, golden["start"]), []
    state = optimizer.init(params)
    for _ in golden["losses"]:
      params, state, value = step(params, state)
      losses.append(value)
    close(np.array(losses), golden["losses"], tolerance)
    close(params, golden["end"], tolerance)
    for name, layer in golden["raw"].items():
      polar = state.raw[name]["kernel"]
      close(polar._asdict(), layer, tolerance)


def test_weight_norm_has_the_gradients_of_the_paper():
  v, g, by_w = RNG.normal(size=(4, 3)), RNG.normal(size=(1, 3)), RNG.normal(size=(4, 3))
  raw = {"kernel": Polar(jnp.asarray(v, jnp.float32), jnp.asarray(g, jnp.float32))}
  weights, pull_back = jax.vjp(weight_norm().weights, raw)
  found = pull_back({"kernel": jnp.asarray(by_w, jnp.float32)})[0]["kernel"]
  length = np.sqrt((v**2).sum(axis=0, keepdims=True))
  by_g = (by_w * v).sum(axis=0, keepdims=True) / length
  close(weights["kernel"], g * v / length)
  close(found.scale, by_g)
  close(found.direction, g / length * by_w - g * by_g / length**2 * v)
  close(np.sum(np.asarray(found.direction) * v, axis=0), np.zeros(3))


def test_weight_norm_is_that_of_flax():
  inputs = RNG.normal(size=(6, 5)).astype(np.float32)
  ours = models.Reparameterized(nn.Dense(4), weight_norm())
  params = ours.init(KEY, inputs)["params"]["layer"]
  polar = params["kernel"]._replace(scale=jnp.arange(1.0, 5.0)[None])
  theirs = {
    "layer_instance": {"kernel": polar.direction, "bias": params["bias"]},
    "layer_instance/kernel/scale": polar.scale[0],
  }
  expected = nn.WeightNorm(nn.Dense(4)).apply({"params": theirs}, inputs)
  layer = {**params, "kernel": polar}
  close(ours.apply({"params": {"layer": layer}}, inputs), expected)


def test_weight_norm_lets_directions_grow_under_gradient_descent():
  optimizer = reparameterized(optax.sgd(0.5), weight_norm())
  params = jnp.asarray(RNG.normal(size=(4, 3)), jnp.float32)
  state = optimizer.init(params)
  lengths = [np.linalg.norm(state.raw.direction, axis=0)]
  for _ in range(5):
    gradient = jnp.asarray(RNG.normal(size=(4, 3)), jnp.float32)
    updates, state = optimizer.update(gradient, state, params)
    params = params + updates
    lengths.append(np.linalg.norm(state.raw.direction, axis=0))
  assert np.all(np.diff(lengths, axis=0) > 0)


def test_weight_norm_of_other_axes():
  kernel = jnp.asarray(RNG.normal(size=(4, 3, 2)), jnp.float32)
  raw = weight_norm(axis=1).init(kernel)
  close(raw.scale, np.sqrt((np.asarray(kernel) ** 2).sum(axis=(0, 2), keepdims=True)))
  close(weight_norm(axis=1).weights(raw), kernel)


class TwoLayers(nn.Module):
  """A convolution and a dense layer, both initialised by data."""

  @nn.compact
  def __call__(self, inputs):
    draw = nn.initializers.normal(0.05)
    conv = nn.Conv(4, (3, 3), use_bias=False, kernel_init=draw)
    dense = nn.Dense(3, use_bias=False, kernel_init=draw)
    first = models.WeightNormalized(conv)(inputs)
    return first, models.WeightNormalized(dense, scale=2.0)(nn.tanh(first))


def test_weight_norm_initialised_by_data_standardises_every_layer():
  inputs = (3 + 2 * RNG.normal(size=(8, 4, 5, 2))).astype(np.float32)
  variables = TwoLayers().init(KEY, inputs)
  for outputs, deviation in zip(TwoLayers().apply(variables, inputs), (1, 2), strict=True):
    rows = np.asarray(outputs).reshape(-1, outputs.shape[-1])
    close(rows.mean(axis=0), np.zeros(outputs.shape[-1]))
    close(rows.std(axis=0), np.full(outputs.shape[-1], deviation), 1e-4)


def test_weight_norm_initialised_by_data_has_the_scale_and_bias_of_the_paper():
  inputs = (1 + RNG.normal(size=(16, 5))).astype(np.float32)
  layer = models.WeightNormalized(nn.Dense(3, use_bias=False))
  params = layer.init(KEY, inputs)["params"]
  v = np.asarray(params["layer"]["kernel"])
  t = inputs @ v / np.sqrt((v**2).sum(axis=0))
  g = 1 / np.sqrt(t.var(axis=0) + 1e-10)
  close(params["scale"], g)
  close(params["bias"], -t.mean(axis=0) * g)
  other = RNG.normal(size=(2, 5)).astype(np.float32)
  expected = other @ (g * v / np.sqrt((v**2).sum(axis=0))) - t.mean(axis=0) * g
  close(layer.apply({"params": params}, other), expected, 1e-4)


def test_mean_only_batch_norm_against_its_definition():
  inputs = RNG.normal(size=(2, 4, 3, 5)).astype(np.float32)
  layer = models.MeanOnlyBatchNorm(use_running_average=False, momentum=0.8)
  variables = layer.init(KEY, inputs)
  close(variables["batch_stats"]["mean"], np.zeros(5))
  variables["params"]["bias"] = bias = jnp.arange(5.0)
  mean, expected = np.zeros(5), inputs - inputs.mean(axis=(0, 1, 2)) + np.arange(5)
  for _ in range(2):
    outputs, changed = layer.apply(variables, inputs, mutable="batch_stats")
    variables = {**variables, **changed}
    mean = 0.8 * mean + 0.2 * inputs.mean(axis=(0, 1, 2))
    close(outputs, expected)
    close(changed["batch_stats"]["mean"], mean)
  evaluated = models.MeanOnlyBatchNorm(use_running_average=True).apply(variables, inputs)
  close(evaluated, inputs - mean + np.asarray(bias))


# weight_compander


def test_weight_compander_against_its_definition():
  v = RNG.normal(size=(4, 3)).astype(np.float32)
  by = weight_compander(a=1.5, b=0.7)
  weights, pull_back = jax.vjp(by.weights, Companded(jnp.asarray(v)))
  close(weights, 1.5 * np.arctan(v / 0.7))
  (found,) = pull_back(jnp.ones_like(weights))
  close(found.raw, 1.5 * 0.7 / (0.7**2 + v**2))
  close(by.init(weights).raw, v)


def test_weight_compander_learns_its_shape():
  v, a, b = np.float32([[0.3, -1.0]]), 1.5, 0.7
  by = weight_compander(a=a, b=b, learn=True)
  raw = by.init(jnp.asarray(a * np.arctan(v / b)))
  (found,) = jax.vjp(by.weights, raw)[1](jnp.ones((1, 2)))
  close(raw.raw, v)
  close(found.log_a, (a * np.arctan(v / b)).sum())  # a dw/da
  close(found.log_b, (-a * b * v / (b**2 + v**2)).sum())  # b dw/db


def test_weight_compander_bounds_weights():
  by = weight_compander(a=0.5, b=0.5)
  close(by.weights(Companded(jnp.array([[1e9, -1e9]]))), [[np.pi / 4, -np.pi / 4]])
  start = by.weights(by.init(jnp.array([[9.0, -9.0]])))
  close(start, [[0.95 * np.pi / 4, -0.95 * np.pi / 4]])


def test_reparameterized_by_hand():
  # w = 2 arctan(v), v = 1: the slope is 1, then 2 / (1 + v^2).
  optimizer = reparameterized(optax.sgd(0.5), weight_compander(a=2.0, b=1.0))
  params = {"kernel": jnp.array([[np.pi / 2]]), "bias": jnp.array([1.0])}
  gradient = {"kernel": jnp.array([[2.0]]), "bias": jnp.array([4.0])}
  state, v, bias = optimizer.init(params), 1.0, 1.0
  for _ in range(3):
    updates, state = optimizer.update(gradient, state, params)
    params = optax.apply_updates(params, updates)
    v, bias = v - 0.5 * 2 * 2 / (1 + v**2), bias - 2
    close(params, {"kernel": np.array([[2 * np.arctan(v)]]), "bias": np.array([bias])})


# orthonormal


def penalty_gradient(w, strength):
  return 2 * strength * w @ (w.T @ w - np.eye(w.shape[1]))


def test_orthonormal_against_its_definition():
  dense, conv = RNG.normal(size=(5, 3)), RNG.normal(size=(2, 2, 2, 4))
  params = {"dense": dense, "conv": conv, "bias": RNG.normal(size=3)}
  params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)
  optimizer = orthonormal(lambda count: 0.1 * (count + 1))
  state = optimizer.init(params)
  for strength in (0.1, 0.2):
    updates, state = optimizer.update(jax.tree.map(jnp.ones_like, params), state, params)
    close(updates["dense"], 1 + penalty_gradient(dense, strength), 1e-4)
    flat = penalty_gradient(conv.reshape(-1, 4), strength)
    close(updates["conv"], 1 + flat.reshape(conv.shape), 1e-4)
    close(updates["bias"], np.ones(3))


def test_orthonormal_takes_many_filters_in_groups():
  w = RNG.normal(size=(2, 5))
  optimizer = orthonormal(0.1)
  kernel = jnp.asarray(w, jnp.float32)
  updates, _ = optimizer.update(jnp.zeros((2, 5)), optimizer.init(kernel), kernel)
  groups = [penalty_gradient(w[:, i : i + 2], 0.1) for i in (0, 2, 4)]
  close(updates, np.concatenate(groups, axis=1))


def test_orthonormality_of_a_multiple_of_orthonormal_filters():
  q = np.linalg.qr(RNG.normal(size=(6, 4)))[0]
  params = {"kernel": jnp.asarray(3 * q, jnp.float32), "bias": jnp.ones(4)}
  close(orthonormality(params), (3**2 - 1) ** 2 * 4 / 2, 1e-4)


def test_orthonormalized_filters_are_orthonormal():
  shapes = {"tall": (6, 3), "conv": (3, 3, 2, 8), "wide": (4, 10)}
  params = {name: jnp.asarray(RNG.normal(size=shape)) for name, shape in shapes.items()}
  found = orthonormalized({**params, "bias": jnp.ones(3)})
  for name in ("tall", "conv"):
    w = np.asarray(found[name]).reshape(-1, shapes[name][-1])
    close(w.T @ w, np.eye(w.shape[1]))
  for group in np.split(np.asarray(found["wide"]), [4, 8], axis=1):
    close(group.T @ group, np.eye(group.shape[1]))
  close(found["bias"], np.ones(3))
  close(orthonormality(found), np.zeros(()))
  # Gram-Schmidt keeps the direction of the first filter.
  first = np.asarray(params["tall"])[:, 0]
  close(found["tall"][:, 0], first / np.linalg.norm(first))


def test_orthonormal_training_leads_to_orthonormal_filters():
  optimizer = optax.chain(orthonormal(1.0), optax.sgd(0.1))
  kernel = orthonormalized(jnp.asarray(RNG.normal(size=(6, 4)), jnp.float32)) * 1.3
  state = optimizer.init(kernel)
  for _ in range(40):
    updates, state = optimizer.update(jnp.zeros_like(kernel), state, kernel)
    kernel = kernel + updates
  close(kernel.T @ kernel, np.eye(4), 1e-4)


@pytest.mark.parametrize(("factor", "restored"), [(0.5, True), (1.05, False), (3.0, True)])
def test_modulated_restores_the_size_of_errors_beyond_the_band(factor, restored):
  w = factor * np.linalg.qr(RNG.normal(size=(4, 4)))[0].astype(np.float32)
  inputs, behind = RNG.normal(size=(2, 5, 4)).astype(np.float32)
  outputs, pull_back = jax.vjp(modulated(lambda x: x @ w, tau=1.1), inputs)
  close(outputs, inputs @ w)
  error = behind @ w.T
  close(pull_back(behind)[0], error / factor if restored else error)


def test_modulated_measures_by_entry_and_keeps_gradients_of_parameters():
  w = RNG.normal(size=(6, 2)).astype(np.float32)
  inputs, behind = RNG.normal(size=(5, 6)).astype(np.float32), np.ones((5, 2), np.float32)
  _, pull_back = jax.vjp(lambda w, x: modulated(lambda x: x @ w, tau=1.0)(x), w, inputs)
  by_w, by_x = pull_back(behind)
  error = behind @ w.T
  q = np.sqrt((error**2).mean() / (behind**2).mean())
  close(by_w, inputs.T @ behind)
  close(by_x, error / q)
  assert np.all(np.asarray(pull_back(np.zeros_like(behind))[1]) == 0)


# dfa


def tanh_layer(params, x):
  return jnp.tanh(x @ params["kernel"] + params["bias"][None])


def normalised_layer(params, x):
  x = x @ params["kernel"] + params["bias"][None]
  variance = jnp.var(x, axis=1, keepdims=True)
  return jnp.tanh((x - x.mean(axis=1, keepdims=True)) / jnp.sqrt(variance + 1e-6))


def linear_layer(params, x):
  return x @ params["kernel"] + params["bias"][None]


OFFICIAL_LAYERS = (tanh_layer, normalised_layer, linear_layer)


def official_feedback(golden):
  """The matrices that the official code cuts from its largest one."""
  matrix = jnp.asarray(golden["random_matrix"])
  sizes = [layer["bias"].size for layer in golden["start"][:-1]]
  return [matrix[:, :size] * (matrix.shape[1] / size) ** 0.5 for size in sizes]


# In front of LayerNorm, gradients of a bias are small differences of large numbers.
@pytest.mark.parametrize(("wide", "tolerance"), [(False, 2e-4), (True, 1e-9)])
def test_dfa_is_the_official_one_for_twenty_five_steps(wide, tolerance):
  golden = values.load("dfa")
  with jax.enable_x64(wide):
    inputs, labels = jnp.asarray(golden["inputs"]), jnp.asarray(golden["labels"])
    # Their hidden layers have sums over the batch.
    feedback = [matrix * len(inputs) for matrix in official_feedback(golden)]
    value_and_grad = jax.jit(dfa(OFFICIAL_LAYERS, cross_entropy))
    params, losses = jax.tree.map(jnp.asarray, golden["start"]), []
    for _ in golden["losses"]:
      value, gradient = value_and_grad(params, feedback, inputs, labels)
      params = jax.tree.map(lambda w, g: w - golden["learning_rate"] * g, params, gradient)
      losses.append(value)
    close(np.array(losses), golden["losses"], tolerance)
    close(params, golden["end"], tolerance)


@BOTH
def test_dfa_aligns_as_the_official_one(wide, tolerance):
  golden = values.load("dfa")
  with jax.enable_x64(wide):
    params = jax.tree.map(jnp.asarray, golden["end"])
    alignment = jax.jit(dfa_alignment(OFFICIAL_LAYERS, cross_entropy))
    inputs, labels = jnp.asarray(golden["inputs"]), jnp.asarray(golden["labels"])
    found = alignment(params, official_feedback(golden), inputs, labels)
    close(found, golden["cosines"], 10 * tolerance)


def matrices(*shapes):
  return [jnp.asarray(RNG.normal(size=shape), jnp.float32) for shape in shapes]


def matmul(w, x):
  return x @ w


def test_dfa_of_a_linear_network_with_the_true_products_is_backpropagation():
  _, second, third = params = matrices((5, 4), (4, 6), (6, 3))
  inputs, targets = matrices((7, 5), (7, 3))

  def loss(outputs, targets):
    return jnp.mean((outputs - targets) ** 2)

  def by_backpropagation(params):
    return loss(inputs @ params[0] @ params[1] @ params[2], targets)

  feedback = [(second @ third).T, third.T]
  found = dfa([matmul] * 3, loss)(params, feedback, inputs, targets)
  close(found, jax.value_and_grad(by_backpropagation)(params), 1e-4)
  close(dfa_alignment([matmul] * 3, loss)(params, feedback, inputs, targets), np.ones((2, 7)))
  close(dfa([matmul] * 3, loss)(params, [-b for b in feedback], inputs, targets)[1][2], found[1][2])


def test_dfa_of_one_layer_is_backpropagation():
  (w,), (inputs,) = matrices((5, 3)), matrices((4, 5))
  value, (gradient,) = dfa([matmul], lambda outputs: jnp.sum(outputs**2))([w], [], inputs)
  close(value, np.sum(np.asarray(inputs @ w) ** 2), 1e-4)
  close(gradient, 2 * inputs.T @ (inputs @ w), 1e-4)


def test_dfa_by_hand():
  w, v, b = (np.asarray(x) for x in matrices((5, 4), (4, 3), (3, 4)))
  inputs, targets = (np.asarray(x) for x in matrices((6, 5), (6, 3)))

  def loss(outputs, targets):
    return jnp.sum((outputs - targets) ** 2) / 2

  layers = [lambda w, x: jnp.tanh(x @ w), matmul]
  hidden = np.tanh(inputs @ w)
  error = hidden @ v - targets
  value, gradient = dfa(layers, loss)([w, v], [b], inputs, targets)
  close(value, np.sum(error**2) / 2, 1e-4)
  close(gradient, [inputs.T @ (error @ b * (1 - hidden**2)), hidden.T @ error], 1e-4)
  by_b, by_bp = error @ b, error @ v.T
  lengths = np.linalg.norm(by_b, axis=1) * np.linalg.norm(by_bp, axis=1)
  found = dfa_alignment(layers, loss)([w, v], [b], inputs, targets)
  close(found, [(by_b * by_bp).sum(axis=1) / lengths])


def test_dfa_network_shows_the_loss_of_any_transformation_its_error():
  # A weighted loss of images: the hidden layer's outputs have two more axes.
  kernel, v = matrices((3, 3, 2, 4), (5 * 5 * 4, 3))
  (b,), inputs, weights = matrices((3, 100)), *matrices((6, 5, 5, 2), (6,))

  def conv(kernel, x):
    numbers = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=numbers)

  network = dfa_network([conv, lambda v, x: x.reshape(len(x), -1) @ v])

  def loss(params):
    return jnp.sum(weights * jnp.sum(network(params, [b], inputs), axis=1))

  error = weights[:, None] * jnp.ones((6, 3))
  local = jax.vjp(lambda kernel: conv(kernel, inputs), kernel)[1]
  expected = local((error @ b).reshape(6, 5, 5, 4))[0]
  close(jax.grad(loss)([kernel, v])[0], expected, 1e-4)


def test_dfa_feedback_has_the_scale_of_the_paper():
  large, small = dfa_feedback(KEY, [2000, 500], 10)
  close([large.std(), small.std()], [1 / 20000**0.5, 1 / 5000**0.5], 1e-3)
  close(small, large[:, :500] * 2)
