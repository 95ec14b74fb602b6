"""Values of objectives against official code, NumPy transcriptions and closed forms."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrl import oracle
from jaxrl.oracle import Losses
from objectives.augmentation import mixup as mixup_file
from objectives.augmentation import regmixup as regmixup_file
from objectives.augmentation.mixup import mixup
from objectives.augmentation.regmixup import regmixup
from objectives.classification.cross_entropy import cross_entropy
from objectives.classification.elr import elr
from objectives.classification.label_smoothing import label_smoothing
from objectives.classification.maxsup import maxsup
from objectives.regression.squared_error import squared_error
from objectives.reweighting.group_dro import group_dro
from objectives.reweighting.z_error import z_error
from tests import values

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(6, 3)).astype(np.float32)
LABELS = np.array([0, 1, 2, 2, 1, 0])


def close(actual, expected, tolerance=1e-5):
  np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)


def reduced(objective, state, logits, **batch):
  """The scalar of an objective whose model gives `logits`, and its next state."""
  batch = {"inputs": jnp.asarray(logits), **{name: jnp.asarray(x) for name, x in batch.items()}}
  terms, state, _ = objective.apply(state, lambda inputs: inputs, batch, KEY)
  return oracle.total(terms), state


def transformed(transform, losses, state=None, mask=None, **extras):
  """Losses and state after one update of a loss transform."""
  losses = oracle.masked_losses(jnp.asarray(losses), None if mask is None else jnp.asarray(mask))
  state = transform.init(losses) if state is None else state
  extras = {name: jnp.asarray(array) for name, array in extras.items()}
  return transform.update(losses, state, None, **extras)


# squared_error


@pytest.mark.parametrize("shape", [(5,), (5, 3), (5, 2, 2)])
def test_squared_error_is_a_squared_distance(shape):
  predictions, targets = RNG.normal(size=(2, *shape)).astype(np.float32)
  distances = np.linalg.norm((predictions - targets).reshape(5, -1), axis=1)
  close(squared_error(jnp.asarray(predictions), jnp.asarray(targets)), distances**2)


def test_squared_error_refuses_to_broadcast():
  with pytest.raises(AssertionError):
    squared_error(jnp.zeros(4), jnp.zeros((4, 1)))
  with pytest.raises(AssertionError):
    squared_error(jnp.zeros(()), jnp.zeros(()))


# label_smoothing


def test_label_smoothing_by_its_definition_and_for_probabilities():
  log_p = LOGITS - np.log(np.exp(LOGITS).sum(axis=1, keepdims=True))
  targets = 0.8 * np.eye(3)[LABELS] + 0.2 / 3
  expected = -np.sum(targets * log_p, axis=1)
  close(label_smoothing(LOGITS, jnp.asarray(LABELS), alpha=0.2), expected)
  close(label_smoothing(LOGITS, jnp.eye(3)[LABELS], alpha=0.2), expected)


# maxsup


def mean_and_gradient(logits, labels, **hyper):
  def mean(logits):
    return jnp.mean(maxsup(logits, jnp.asarray(labels), **hyper))

  return jax.value_and_grad(mean)(jnp.asarray(logits, jnp.float32))


def test_maxsup_is_the_official_one_also_at_ties():
  golden = values.load("maxsup")
  case = golden["maxsup"]
  value, gradient = mean_and_gradient(case["logits"], case["labels"], alpha=golden["alpha"])
  close(value, case["value"])
  close(gradient, case["gradient"])


@pytest.mark.parametrize("case", ["maxsup_correct", "label_smoothing_correct"])
def test_maxsup_is_label_smoothing_where_the_prediction_is_correct(case):
  golden = values.load("maxsup")
  expected = golden[case]
  value, gradient = mean_and_gradient(expected["logits"], expected["labels"], alpha=golden["alpha"])
  close(value, expected["value"])
  close(gradient, expected["gradient"])


def test_maxsup_adds_nothing_at_alpha_zero_and_to_equal_logits():
  labels = jnp.asarray(LABELS)
  np.testing.assert_array_equal(maxsup(LOGITS, labels, alpha=0.0), cross_entropy(LOGITS, labels))
  np.testing.assert_array_equal(
    maxsup(jnp.ones((6, 3)), labels), cross_entropy(jnp.ones((6, 3)), labels)
  )


def test_the_term_of_maxsup_is_positive_and_ignores_shifts_and_labels():
  labels = jnp.asarray(LABELS)
  term = maxsup(LOGITS, labels, alpha=1.0) - cross_entropy(LOGITS, labels)
  assert np.all(term > 0)
  shifted = LOGITS + 5.0
  close(maxsup(shifted, labels, alpha=1.0) - cross_entropy(shifted, labels), term)
  soft = jnp.full((6, 3), 1 / 3)
  close(maxsup(LOGITS, soft, alpha=1.0) - cross_entropy(LOGITS, soft), term)


# elr


def test_elr_is_the_official_one_for_five_steps():
  golden = values.load("elr")
  objective = elr(golden["num_examples"], golden["num_classes"], lam=golden["lam"])
  state = objective.init(KEY)
  for step in golden["steps"]:

    def value(logits, state=state, step=step):
      return reduced(objective, state, logits, labels=step["labels"], index=step["index"])

    logits = jnp.asarray(step["logits"], jnp.float32)
    (loss, state), gradient = jax.value_and_grad(value, has_aux=True)(logits)
    close(loss, step["value"], 2e-5)
    close(gradient, step["gradient"], 2e-5)
    close(state.memory, step["memory"])


def elr_of_three_classes(memory=None, **hyper):
  objective = elr(8, 3, **hyper)
  state = objective.init(KEY)
  return objective, state if memory is None else state._replace(memory=jnp.asarray(memory))


INDEX = np.array([5, 0, 3, 7, 1, 2])
MEMORY = (RNG.dirichlet([1, 1, 1], size=8) * 0.9).astype(np.float32)
SOFTMAX = np.exp(LOGITS) / np.exp(LOGITS).sum(axis=1, keepdims=True)


def test_the_gradient_of_elr_has_a_closed_form():
  objective, state = elr_of_three_classes(MEMORY, beta=1.0, lam=2.0)

  def term(logits):
    pulled, _ = reduced(objective, state, logits, labels=LABELS, index=INDEX)
    return 6 * (pulled - jnp.mean(cross_entropy(logits, jnp.asarray(LABELS))))

  own = MEMORY[INDEX]
  agreement = (own * SOFTMAX).sum(axis=1, keepdims=True)
  expected = -2.0 * SOFTMAX * (own - agreement) / (1 - agreement)
  close(jax.grad(term)(jnp.asarray(LOGITS)), expected)


@pytest.mark.parametrize("hyper", [{"lam": 0.0}, {"beta": 1.0}])
def test_elr_without_its_pull_or_its_memory_is_cross_entropy(hyper):
  objective, state = elr_of_three_classes(**hyper)
  value, after = reduced(objective, state, LOGITS, labels=LABELS, index=INDEX)
  close(value, np.mean(-np.log(SOFTMAX[np.arange(6), LABELS])))
  if "beta" in hyper:
    np.testing.assert_array_equal(after.memory, 0)


def test_elr_without_momentum_remembers_the_last_prediction():
  objective, state = elr_of_three_classes(MEMORY, beta=0.0)
  _, after = reduced(objective, state, LOGITS, labels=LABELS, index=INDEX)
  close(after.memory[INDEX], SOFTMAX)
  np.testing.assert_array_equal(after.memory[np.array([4, 6])], MEMORY[np.array([4, 6])])


def test_elr_moves_a_repeated_example_once_to_the_mean():
  objective, state = elr_of_three_classes(MEMORY, beta=0.6)
  index = np.array([5, 0, 5, 7, 5, 2])
  mask = np.array([1.0, 1.0, 0.0, 1.0, 1.0, 1.0], np.float32)
  _, after = reduced(objective, state, LOGITS, labels=LABELS, index=index, mask=mask)
  close(after.memory[5], 0.6 * MEMORY[5] + 0.4 * (SOFTMAX[0] + SOFTMAX[4]) / 2)


def test_examples_with_mask_zero_leave_the_memory_of_elr_alone():
  objective, state = elr_of_three_classes(MEMORY)
  mask = np.array([1, 1, 1, 1, 0, 0], np.float32)
  broken = LOGITS.copy()
  broken[4:] = np.nan
  value, after = reduced(objective, state, broken, labels=LABELS, index=INDEX, mask=mask)
  first, after_first = reduced(objective, state, LOGITS[:4], labels=LABELS[:4], index=INDEX[:4])
  close(value, first)
  np.testing.assert_array_equal(after.memory, after_first.memory)
  np.testing.assert_array_equal(after.memory[INDEX[4:]], MEMORY[INDEX[4:]])


def test_elr_in_micro_batches_gives_the_result_of_the_whole():
  objective, state = elr_of_three_classes(MEMORY)
  whole, after = reduced(objective, state, LOGITS, labels=LABELS, index=INDEX)
  parts = []
  for part in (slice(0, 3), slice(3, 6)):
    value, state = reduced(objective, state, LOGITS[part], labels=LABELS[part], index=INDEX[part])
    parts.append(value)
  close(np.mean(parts), whole)
  np.testing.assert_array_equal(state.memory, after.memory)


def test_elr_stays_finite_in_bfloat16_where_memory_and_prediction_are_sure():
  objective, state = elr_of_three_classes(beta=0.0, lam=3.0)
  sure = jnp.asarray([[30.0, -30.0, -30.0]], jnp.bfloat16)
  value, _ = reduced(objective, state, sure, labels=[0], index=[0])
  sure_after_clip = (1 - 1e-4) ** 2 / (1 + 1e-4) + 2e-8
  close(value, 3 * np.log(1 - sure_after_clip), 1e-2)


def test_elr_says_what_is_wrong_with_an_index():
  objective, state = elr_of_three_classes()
  with pytest.raises(ValueError, match="elr needs `index`"):
    reduced(objective, state, LOGITS, labels=LABELS)
  value, _ = reduced(objective, state, LOGITS, labels=LABELS, index=INDEX + 8)
  assert np.isnan(value)


# group_dro


@pytest.mark.parametrize("run", [0, 1, 2])
def test_group_dro_is_the_official_one_for_twenty_steps(run):
  golden = values.load("group_dro")
  run = golden["runs"][run]
  counts = tuple(golden["group_counts"].tolist())
  margin = run["adjustment"] / np.sqrt(counts)
  transform = group_dro(
    golden["num_groups"],
    eta=run["eta"],
    adjustment=run["adjustment"],
    group_counts=counts,
    normalize=run["normalize"],
  )
  state = transform.init(Losses(*jnp.zeros((3, 0))))

  @jax.jit
  @functools.partial(jax.value_and_grad, has_aux=True)
  def value(logits, labels, group, state):
    losses, state = transformed(transform, cross_entropy(logits, labels), state, group=group)
    return oracle.total([losses]), state

  for step in run["steps"]:
    logits = jnp.asarray(step["logits"], jnp.float32)
    (loss, state), gradient = value(logits, step["labels"], step["group"], state)
    # The official loss also reports the margins, constants for the gradient.
    close(loss + step["q"] @ margin, step["value"])
    close(gradient, step["gradient"])
    close([state.metrics[f"q_{g}"] for g in range(3)], step["q"])


VALUES = np.array([1.0, 2.0, 3.0, 6.0, 5.0, 0.5], np.float32)
GROUP = np.array([0, 0, 1, 1, 1, 2])
MEANS = np.array([1.5, 14 / 3, 0.5])


@pytest.mark.parametrize(("eta", "expected"), [(0.0, MEANS.mean()), (1e9, MEANS.max())])
def test_group_dro_goes_from_the_average_of_the_groups_to_the_worst(eta, expected):
  losses, _ = transformed(group_dro(3, eta=eta), VALUES, group=GROUP)
  close(oracle.total([losses]), expected)
  close(jnp.sum(losses.norm), 1.0)


def test_group_dro_of_one_group_is_the_mean():
  losses, _ = transformed(group_dro(1), VALUES, group=np.zeros(6, int))
  close(oracle.total([losses]), VALUES.mean())


def test_group_dro_counts_an_absent_group_as_zero_and_ignores_masked_examples():
  mask = np.array([1, 1, 1, 0, 0, 0], np.float32)
  broken = np.where(mask > 0, VALUES, np.nan)
  losses, state = transformed(group_dro(3, eta=0.1), broken, mask=mask, group=GROUP)
  q = np.exp([0.15, 0.3, 0.0]) / np.exp([0.15, 0.3, 0.0]).sum()
  close(oracle.total([losses]), q @ [1.5, 3.0, 0.0])
  close(list(state.metrics.values()), q)
  close(jnp.sum(losses.norm), 1.0)


def test_group_dro_survives_losses_of_any_size_and_recovers():
  transform, state = group_dro(3, eta=1e9), None
  for scale in (1e30, 5e37, 5e37, 0.0):
    _, state = transformed(transform, scale * MEANS, state, group=[0, 1, 2])
    np.testing.assert_array_equal(list(state.metrics.values()), [0, 1, 0])
  transform, state = group_dro(2, eta=1.0), None
  for worst in ([200.0, 0.0], [0.0, 200.5]):
    _, state = transformed(transform, worst, state, group=[0, 1])
  close(state.metrics["q_1"], 1 / (1 + np.exp(-0.5)))


def test_group_dro_takes_a_schedule_and_injected_hyperparameters():
  scheduled = group_dro(3, eta=lambda count: 0.1 * (count + 1))
  injected = optax.inject_hyperparams(group_dro, static_args="num_groups")(3, eta=0.1)
  state = injected_state = None
  for _ in range(2):
    _, state = transformed(scheduled, VALUES, state, group=GROUP)
    _, injected_state = transformed(injected, VALUES, injected_state, group=GROUP)
  close(state.log_q, jax.nn.log_softmax(0.3 * MEANS))
  close(injected_state.inner_state.log_q, jax.nn.log_softmax(0.2 * MEANS))


def test_group_dro_gives_every_token_its_examples_group():
  tokens = VALUES.reshape(3, 2)
  losses, _ = transformed(group_dro(2, eta=0.0), tokens, group=[0, 1, 1])
  close(oracle.total([losses]), (tokens[0].mean() + tokens[1:].mean()) / 2)


def test_group_dro_says_what_is_wrong():
  with pytest.raises(ValueError, match="needs group_counts"):
    group_dro(2, adjustment=1.0)
  with pytest.raises(ValueError, match="2 positive numbers"):
    group_dro(2, adjustment=1.0, group_counts=(3, 4, 5))
  with pytest.raises(ValueError, match="group_dro needs `group`"):
    transformed(group_dro(2), VALUES)
  losses, _ = transformed(group_dro(2), VALUES, group=GROUP)
  assert np.isnan(oracle.total([losses]))


# z_error


def inliers(scores, classes, tau, eps=1e-8):
  """The paper's mask, example by example; classes of one member are kept."""
  kept = np.ones(len(scores))
  for c in set(classes.tolist()):
    members = classes == c
    if members.sum() > 1:
      z = (scores - scores[members].mean()) / (scores[members].std(ddof=1) + eps)
      kept[members & (np.abs(z) > tau)] = 0
  return kept


def outlying_batch():
  rng = np.random.default_rng(4)
  predictions, targets = rng.normal(size=(2, 40))
  targets[:3] += [9.0, -8.0, 10.0]
  logits = rng.normal(size=(40, 4))
  labels = rng.integers(3, size=40)
  labels[7] = 3
  logits[np.arange(40), labels] += 3.0
  logits[np.arange(3), labels[:3]] -= 12.0
  batch = {"predictions": predictions, "targets": targets, "logits": logits}
  return {name: x.astype(np.float32) for name, x in batch.items()} | {"labels": labels}


@pytest.mark.parametrize("tau", [1.0, 2.0])
@pytest.mark.parametrize("statistic", ["error", "loss", "logit", "prob"])
def test_z_error_masks_as_the_paper_does(statistic, tau):
  batch = outlying_batch()
  losses = (batch["targets"] - batch["predictions"]) ** 2
  rows = np.arange(40)
  softmax = np.exp(batch["logits"]) / np.exp(batch["logits"]).sum(axis=1, keepdims=True)
  scores = {
    "error": batch["targets"] - batch["predictions"],
    "loss": losses,
    "logit": batch["logits"][rows, batch["labels"]],
    "prob": softmax[rows, batch["labels"]],
  }[statistic]
  classes = batch["labels"] if statistic in ("logit", "prob") else np.zeros(40, int)
  kept = inliers(scores.astype(np.float64), classes, tau)
  assert 0 < kept.sum() < 40
  assert kept[7] or statistic in ("error", "loss")

  after, state = transformed(z_error(tau, statistic=statistic), losses, **batch)
  np.testing.assert_array_equal(after.weights, kept)
  np.testing.assert_array_equal(after.norm, kept)
  close(oracle.total([after]), (kept * losses).sum() / kept.sum())
  close(state.metrics["kept"], kept.mean())


def test_z_error_auto_takes_the_error_where_there_are_targets():
  batch = outlying_batch()
  losses = np.ones(40, np.float32)
  for gone, statistic in (((), "error"), (("targets",), "logit")):
    seen = {name: x for name, x in batch.items() if name not in gone}
    auto, _ = transformed(z_error(1.5), losses, **seen)
    named, _ = transformed(z_error(1.5, statistic=statistic), losses, **batch)
    np.testing.assert_array_equal(auto.weights, named.weights)


def test_z_error_of_two_classes_with_one_logit():
  batch = outlying_batch()
  logits, labels = batch["logits"][:, 0], batch["labels"] % 2
  losses = np.ones(40, np.float32)
  for statistic, scores in (("logit", logits), ("prob", 1 / (1 + np.exp(-logits)))):
    after, _ = transformed(z_error(1.0, statistic=statistic), losses, logits=logits, labels=labels)
    np.testing.assert_array_equal(after.weights, inliers(scores, labels, 1.0))


def test_z_error_needs_every_output_within_tau():
  errors = np.random.default_rng(5).normal(size=(30, 2)).astype(np.float32)
  after, _ = transformed(
    z_error(1.5), (errors**2).sum(axis=1), predictions=np.zeros((30, 2)), targets=errors
  )
  columns = [inliers(errors[:, d], np.zeros(30, int), 1.5) for d in range(2)]
  np.testing.assert_array_equal(after.weights, columns[0] * columns[1])
  assert 0 < columns[0] @ columns[1] < 30


def test_z_error_sees_only_counted_examples():
  batch = outlying_batch()
  losses = batch["targets"] ** 2
  mask = np.ones(40, np.float32)
  mask[[2, 20, 30]] = 0
  broken = {**batch, "targets": np.where(mask > 0, batch["targets"], np.nan)}
  after, _ = transformed(z_error(2.0), losses, mask=mask, **broken)
  seen = mask > 0
  only = inliers((batch["targets"] - batch["predictions"])[seen], np.zeros(37, int), 2.0)
  np.testing.assert_array_equal(np.asarray(after.weights)[seen], only)
  np.testing.assert_array_equal(np.asarray(after.weights)[~seen], 0)


def test_z_error_keeps_everything_at_infinity_in_small_batches_and_after_a_shift():
  batch = outlying_batch()
  losses = batch["targets"] ** 2
  np.testing.assert_array_equal(transformed(z_error(jnp.inf), losses, **batch)[0].weights, 1)
  few = {name: x[:5] for name, x in batch.items()}
  np.testing.assert_array_equal(transformed(z_error(2.0), losses[:5], **few)[0].weights, 1)
  shifted = {**batch, "targets": batch["targets"] + 3.0}
  np.testing.assert_array_equal(
    transformed(z_error(2.0), losses, **batch)[0].weights,
    transformed(z_error(2.0), losses, **shifted)[0].weights,
  )


def test_z_error_does_not_hide_what_is_not_a_number():
  losses = jnp.ones(8).at[3].set(jnp.nan)
  after, _ = transformed(z_error(2.0, statistic="loss"), losses)
  assert np.isnan(oracle.total([after]))


def test_z_error_anneals_by_schedule():
  batch = outlying_batch()
  annealed = z_error(lambda count: jnp.where(count == 0, jnp.inf, 1.0))
  first, state = transformed(annealed, batch["targets"], **batch)
  second, _ = transformed(annealed, batch["targets"], state, **batch)
  now, _ = transformed(z_error(1.0), batch["targets"], **batch)
  np.testing.assert_array_equal(first.weights, 1)
  np.testing.assert_array_equal(second.weights, now.weights)


def fitted_line(transform):
  """Slope and intercept after 400 steps on y = 2 x + noise, where 5 % are 20 too high."""
  rng = np.random.default_rng(6)
  x = rng.uniform(-1, 1, size=(400, 64)).astype(np.float32)
  y = 2 * x + 0.1 * rng.normal(size=x.shape) + 20 * (rng.uniform(size=x.shape) < 0.05)

  def loss(line, x, y):
    predictions = line[0] * x + line[1]
    after, _ = transformed(
      transform, squared_error(predictions, y), predictions=predictions, targets=y
    )
    return oracle.total([after])

  def step(line, batch):
    return line - 0.05 * jax.grad(loss)(line, *batch), None

  return jax.lax.scan(step, jnp.zeros(2), (x, y.astype(np.float32)))[0]


def test_z_error_fits_a_line_through_outliers():
  robust = np.abs(fitted_line(z_error(2.0)) - np.array([2.0, 0.0]))
  plain = np.abs(fitted_line(z_error(jnp.inf)) - np.array([2.0, 0.0]))
  assert plain[1] > 0.5
  assert np.all(robust < 0.05)
  assert np.linalg.norm(plain) > 5 * np.linalg.norm(robust)


def test_z_error_says_which_array_is_missing_or_does_not_fit():
  with pytest.raises(ValueError, match="z_error needs `predictions`"):
    transformed(z_error(), VALUES, targets=VALUES)
  with pytest.raises(ValueError, match="z_error needs `logits`"):
    transformed(z_error(), VALUES, labels=LABELS)
  with pytest.raises(AssertionError):
    transformed(z_error(), VALUES, predictions=VALUES, targets=VALUES[:, None])
  with pytest.raises(AssertionError):
    transformed(z_error(), VALUES, logits=LOGITS, labels=LABELS[:3])


# mixup


def one_hot_inputs(size, **arrays):
  """A batch in which the inputs show who was mixed with whom."""
  return {"inputs": jnp.eye(size), "labels": jnp.arange(size) % 3, **arrays}


@pytest.mark.parametrize("alpha", [0.2, 20.0])
def test_the_ratio_of_mixup_has_the_moments_of_its_beta_distribution(alpha):
  transform = mixup(alpha, num_classes=2)
  batch = {"inputs": jnp.array([0.0, 1.0]), "labels": jnp.array([0, 1])}
  keys = jax.random.split(KEY, 4000)
  first = jax.vmap(lambda key: transform(key, batch)["inputs"][0])(keys)
  # With probability 1/2 the example is its own partner, which leaves 0; else 1 - ratio.
  close(jnp.mean(first), 1 / 4, 0.02)
  close(jnp.mean(first**2), (1 / 4 + 1 / (4 * (2 * alpha + 1))) / 2, 0.02)


def test_mixup_mixes_inputs_labels_and_targets_alike():
  targets = jnp.asarray(RNG.normal(size=(6, 2)), jnp.float32)
  batch = one_hot_inputs(6, targets=targets, index=jnp.arange(6))
  mixed = mixup(1.0, num_classes=3)(KEY, batch)
  shares = mixed["inputs"]
  close(jnp.sum(shares, axis=1), np.ones(6))
  close(jnp.sum(shares, axis=0), np.ones(6))
  close(mixed["labels"], shares @ np.eye(3)[np.arange(6) % 3])
  close(mixed["targets"], shares @ targets)
  np.testing.assert_array_equal(mixed["index"], np.arange(6))
  own = np.diag(shares)
  assert len(set(own[own < 1].tolist())) == 1


def test_cross_entropy_of_mixed_labels_is_the_mixture_of_cross_entropies():
  ratio, partner = mixup_file.draw_pairs(KEY, 1.0, 6, None)
  mixed = mixup(1.0, num_classes=3)(KEY, {"inputs": LOGITS, "labels": jnp.asarray(LABELS)})
  logits = jnp.asarray(LOGITS)
  own, other = (cross_entropy(logits, jnp.asarray(y)) for y in (LABELS, LABELS[partner]))
  close(cross_entropy(logits, mixed["labels"]), ratio * own + (1 - ratio) * other)


def test_mixup_never_mixes_padding_into_an_example():
  mask = jnp.array([1.0, 0.0, 1.0, 1.0, 0.0, 0.5, 1.0])
  transform = jax.jit(mixup(1.0, num_classes=3))
  seen = np.zeros((7, 7), bool)
  for seed in range(60):
    shares = transform(jax.random.key(seed), one_hot_inputs(7, mask=mask))["inputs"]
    close(jnp.sum(shares, axis=0), np.ones(7))
    seen |= np.asarray(shares) > 0
  counted = np.asarray(mask) > 0
  np.testing.assert_array_equal(seen, counted[:, None] == counted[None, :])


def test_mixup_at_alpha_zero_only_encodes_the_labels():
  batch = one_hot_inputs(6)
  mixed = mixup(0.0, num_classes=3)(KEY, batch)
  np.testing.assert_array_equal(mixed["inputs"], batch["inputs"])
  np.testing.assert_array_equal(mixed["labels"], np.eye(3)[np.arange(6) % 3])
  again = mixup(0.0, num_classes=3)(KEY, mixed)
  np.testing.assert_array_equal(again["labels"], mixed["labels"])


# regmixup


def linear_loss(objective, weights, batch):
  calls = []

  def forward(inputs):
    calls.append(inputs.shape)
    return inputs @ weights

  terms, _, _ = objective.apply((), forward, batch, KEY)
  assert calls == [(2 * len(batch["inputs"]), *batch["inputs"].shape[1:])]
  return oracle.total(terms)


def regmixup_batch():
  golden = values.load("regmixup")
  inputs = jnp.asarray(golden["inputs"], jnp.float32)
  return golden, {"inputs": inputs, "labels": jnp.asarray(golden["labels"])}


def test_regmixup_is_the_official_one_and_half_of_the_papers(monkeypatch):
  golden, batch = regmixup_batch()
  drawn = jnp.asarray(golden["ratio"]), jnp.asarray(golden["partner"])
  monkeypatch.setattr(regmixup_file, "draw_pairs", lambda *_: drawn)
  weights = jnp.asarray(golden["weights"], jnp.float32)
  value, gradient = jax.value_and_grad(lambda w: linear_loss(regmixup(), w, batch))(weights)
  close(value, golden["value"])
  close(gradient, golden["gradient"])
  close(linear_loss(regmixup(official=False), weights, batch), 2 * golden["value"])


def test_regmixup_without_the_mixture_is_cross_entropy():
  golden, batch = regmixup_batch()
  weights = jnp.asarray(golden["weights"], jnp.float32)
  expected = jnp.mean(cross_entropy(batch["inputs"] @ weights, batch["labels"]))
  close(linear_loss(regmixup(eta=0.0, official=False), weights, batch), expected)


def test_regmixup_adds_the_loss_of_mixup_on_counted_examples():
  golden, batch = regmixup_batch()
  weights = jnp.asarray(golden["weights"], jnp.float32)
  batch = {**batch, "mask": jnp.array([1.0, 0.0, 1.0, 1.0, 0.0])}
  counted = np.array([0, 2, 3])

  def mean_loss(batch):
    return jnp.mean(cross_entropy(batch["inputs"] @ weights, batch["labels"])[counted])

  mixed = mixup(20.0, num_classes=4)(KEY, batch)
  expected = mean_loss(batch) + 0.3 * mean_loss(mixed)
  close(linear_loss(regmixup(20.0, eta=0.3, official=False), weights, batch), expected)


def test_regmixup_mixes_evenly_where_alpha_is_large():
  ratios = [mixup_file.draw_pairs(jax.random.key(seed), 1e6, 4, None)[0] for seed in range(20)]
  close(ratios, np.full(20, 0.5), 3e-3)
