"""The one train step: any Objective, any optax optimizer, any Model, as two pure functions."""

import functools
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from . import check, oracle, parallel, reduce
from .metrics import collect_metrics
from .models import Model

_OF_AN_EXAMPLE = ("labels", "group", "index", "mask")


class TrainState(NamedTuple):
  """All that a run needs to go on; arrays only.

  `teacher` holds averages of `params` and `model` where the objective wants them.
  """

  step: jax.Array
  seed: jax.Array
  params: Any
  optimizer: Any
  objective: Any
  model: Any
  teacher: Any = ()


class Train(NamedTuple):
  """The pure functions of a run.

  They are `init(seed)`, `step(state, batch)`, `evaluate(state, batch)` and
  `predict(state, batch)`.

  `step` returns the next state and a dictionary of scalars. `evaluate` returns sums over a
  batch, to be added up by `mean_metrics`. `predict` returns the `logits` of a batch, next to
  the columns of the batch that tell which example each row is about.
  """

  init: Callable[[Any], TrainState]
  step: Callable[[TrainState, oracle.Batch], tuple[TrainState, dict[str, jax.Array]]]
  evaluate: Callable[[TrainState, oracle.Batch], dict[str, jax.Array]]
  predict: Callable[[TrainState, oracle.Batch], dict[str, jax.Array]]


def make_train(
  model: Model,
  objective: oracle.Objective,
  optimizer: optax.GradientTransformation,
  example_inputs: jax.Array,
  *,
  steps_per_epoch: int = 1,
  micro_batches: int = 1,
  compute_dtype: Any = jnp.float32,
  axis_name: parallel.AxisName | None = None,
) -> Train:
  """Puts a model, an objective and an optimizer together.

  Args:
    model: what `forward` runs.
    objective: what is minimised.
    optimizer: gets `value`, `grad` and `value_fn` as extra arguments.
    example_inputs: inputs of the right shape and dtype, for `model.init`.
    steps_per_epoch: lets objectives see the `epoch`.
    micro_batches: number of equal parts in which a batch goes through the model; the
      result is that of the whole batch, the memory that of a part.
    compute_dtype: dtype of the forward pass (`bfloat16` for mixed precision); parameters,
      losses and optimizer stay in their own.
    axis_name: makes `step` that of one worker, with local gradients, to be run by
      `jaxrl.parallel.per_worker_step`; `None` for one device, or a step that XLA partitions.

  Raises:
    ValueError: `micro_batches` or `steps_per_epoch` is not a positive whole number.
  """
  check.whole("micro_batches", micro_batches, 1)
  check.whole("steps_per_epoch", steps_per_epoch, 1)
  optimizer = optax.with_extra_args_support(optimizer)
  run = _mixed_precision(model, compute_dtype)

  def init(seed):
    seed = jnp.asarray(seed, jnp.int32)
    model_key, objective_key = jax.random.split(jax.random.key(seed))
    params, model_state = model.init(model_key, example_inputs)
    state = TrainState(
      step=jnp.zeros([], jnp.int32),
      seed=seed,
      params=params,
      optimizer=_seeded(optimizer.init(params), seed),
      objective=objective.init(objective_key),
      model=model_state,
      teacher=() if objective.teacher is None else (params, model_state),
    )
    return jax.tree.map(_strong, state)

  settings = _Settings(run, objective, optimizer, steps_per_epoch, micro_batches, axis_name)

  def step(state, batch):
    with reduce.over(axis_name):
      return _step(settings, state, batch)

  def outputs_of(state, batch):
    params = eval_params(state.optimizer, state.params)
    outputs, _ = run(params, state.model, batch["inputs"], jax.random.key(0), False)
    return oracle.named_outputs(outputs)

  def evaluate(state, batch):
    return _evaluation_sums(outputs_of(state, batch), batch)

  def predict(state, batch):
    columns = {name: batch[name] for name in _OF_AN_EXAMPLE if name in batch}
    return {"logits": outputs_of(state, batch)["logits"], **columns}

  return Train(init, step, evaluate, predict)


def eval_params(optimizer_state: Any, params: Any) -> Any:
  """The parameters to use: those of the methods' own `eval_params`, where they define one.

  A method whose answer is not `params` (an average, an anchor) defines
  `eval_params(state, params)` in the file that defines its state.
  """
  for state in _named_tuples(optimizer_state):
    own = getattr(sys.modules[type(state).__module__], "eval_params", None)
    if own is not None:
      answer = own(state, _masked_as(state, params))
      params = _choose(lambda a, p: p if _is_masked(a) else a, answer, params)
  return params


def _masked_as(state: Any, params: Any) -> Any:
  """`params`, masked where a params-shaped field of a method's state is."""
  shape = jax.tree.structure(params)
  for field in state:
    if jax.tree.structure(field, is_leaf=_is_masked) == shape:
      return _choose(lambda f, p: f if _is_masked(f) else p, field, params)
  return params


def _choose(choice: Callable[[Any, Any], Any], masked: Any, params: Any) -> Any:
  return jax.tree.map(choice, masked, params, is_leaf=_is_masked)


def _is_masked(node: Any) -> bool:
  return isinstance(node, optax.MaskedNode)


def bad_leaf_name(params: Any, first_bad_leaf: int) -> str:
  """The path of the leaf that the metric `first_bad_leaf` counts to."""
  paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(params)]
  return jax.tree_util.keystr(paths[first_bad_leaf], simple=True, separator="/")


def mean_metrics(batches: list[dict[str, jax.Array]]) -> dict[str, float]:
  """The means over all examples from the sums that `evaluate` gave for each batch."""
  sums = jax.tree.map(lambda *parts: float(sum(parts)), *batches)
  count = sums.pop("examples")
  return {name: value / count for name, value in sums.items()}


def accumulate(
  sums: Callable[..., tuple[Any, Any]], params: Any, carry: Any, micro_batches: Any
) -> tuple[jax.Array, Any]:
  r"""The loss of a batch that goes through the model in parts, with the memory of one part.

  .. math::
    L(w) = \sum_j \sum_i a_{ij}(w) \Big/ \sum_i b_{ij}

  over parts i and terms j. The forward pass of its derivative scans the parts and adds up
  their gradients, so nothing of one part is kept while the next one runs.
  Hessian-vector products work as `jvp(grad(...))`; `jvp` of the loss itself raises
  TypeError, as for every `jax.custom_vjp`.

  Args:
    sums: `sums(params, carry, part) -> ((a, b), (carry, extra))`, where `a` and `b` are
      tuples of scalars; `b` is a constant for the gradient.
    params: where the loss is taken.
    carry: state threaded through the parts in order.
    micro_batches: arrays with a leading axis over the parts.

  Returns:
    The loss and `(carry, extras)`, extras stacked over the parts.
  """

  def values(params):
    def add(carry, part):
      (a, b), (carry, extra) = sums(params, carry, part)
      return carry, (a, b, extra)

    after, (a, b, extras) = jax.lax.scan(add, carry, micro_batches)
    return _total_of_parts(a, b), b, (after, extras)

  @jax.custom_vjp
  def loss(params):
    value, _, after = values(params)
    return value, after

  def forward(params):
    # Only what b depends on is left of this pass once it is compiled.
    scale = [jnp.sum(parts) for parts in values(params)[1]]

    def scaled_part(params, carry, part):
      (a, b), (carry, extra) = sums(params, carry, part)
      return sum(map(reduce.ratio, a, scale), start=jnp.zeros(())), (carry, (a, b, extra))

    def add(total, part):
      carry, gradient = total
      part_gradient, (carry, seen) = jax.grad(scaled_part, has_aux=True)(params, carry, part)
      return (carry, jax.tree.map(jnp.add, gradient, part_gradient)), seen

    start = carry, jax.tree.map(jnp.zeros_like, params)
    (after, gradient), (a, b, extras) = jax.lax.scan(add, start, micro_batches)
    return (_total_of_parts(a, b), (after, extras)), gradient

  def backward(gradient, cotangents):
    return (jax.tree.map(lambda g: (cotangents[0] * g).astype(g.dtype), gradient),)

  loss.defvjp(forward, backward)
  return loss(params)


class _Settings(NamedTuple):
  """What `make_train` was given."""

  run: Callable[..., tuple[Any, Any]]
  objective: oracle.Objective
  optimizer: optax.GradientTransformationExtraArgs
  steps_per_epoch: int
  micro_batches: int
  axis_name: parallel.AxisName | None


def _step(
  settings: _Settings, state: TrainState, batch: oracle.Batch
) -> tuple[TrainState, dict[str, jax.Array]]:
  problem = _problem(settings, state, batch)
  loss_at, params = _loss_at(settings, problem), state.params
  if settings.axis_name is not None:
    params = parallel.vary(params, settings.axis_name)
  (value, after), gradient = jax.value_and_grad(loss_at, has_aux=True)(params)
  value, metrics = reduce.worker_mean((value, after.metrics))
  updates, optimizer_state = settings.optimizer.update(
    gradient,
    state.optimizer,
    state.params,
    value=value,
    grad=gradient,
    value_fn=_oracle(settings, problem, loss_at),
  )
  params = optax.apply_updates(state.params, updates)
  metrics = {
    "loss": value,
    **metrics,
    **collect_metrics((after.objective, optimizer_state)),
    "first_bad_leaf": _first_bad_leaf(params),
  }
  teacher = _averaged(settings.objective.teacher, state.teacher, (params, after.model))
  after_step = TrainState(
    state.step + 1, state.seed, params, optimizer_state, after.objective, after.model, teacher
  )
  return after_step, metrics


def _averaged(decay: float | None, teacher: Any, weights: Any) -> Any:
  """The teacher, moved towards the model's weights."""
  if decay is None:
    return teacher
  return jax.tree.map(lambda t, w: (decay * t + (1 - decay) * w).astype(t.dtype), teacher, weights)


def _problem(settings: _Settings, state: TrainState, batch: oracle.Batch) -> "_Problem":
  key = jax.random.fold_in(jax.random.key(state.seed), state.step)
  if settings.axis_name is not None:
    key = jax.random.fold_in(key, jax.lax.axis_index(settings.axis_name))
  batch = {**batch, "epoch": state.step // settings.steps_per_epoch}
  return _Problem(settings.run, settings.objective, state, batch, key)


def _loss_at(settings: _Settings, problem: "_Problem") -> Callable[..., Any]:
  """The loss of this step's problem, and what an evaluation leaves, as a function of params."""
  if settings.micro_batches == 1:
    loss_at = functools.partial(_whole, problem)
  else:
    loss_at = functools.partial(_in_parts, problem, settings.micro_batches)
  if settings.axis_name is None:
    return loss_at
  return _of_one_worker(loss_at, settings.axis_name)


def _of_one_worker(loss_at: Callable[..., Any], axis_name: parallel.AxisName) -> Callable[..., Any]:
  """The worker's own loss, whose mean over the workers is the loss of the whole batch.

  Summed over the workers it would be that loss; its local gradient times the number of
  workers is what a worker holds for the mean.
  """

  def scaled(params):
    value, after = loss_at(parallel.local_or_mean_grads(params, axis_name))
    return parallel.size(axis_name) * value, after

  return scaled


class _After(NamedTuple):
  """What an evaluation at the step's parameters leaves behind."""

  objective: Any
  model: Any
  metrics: dict[str, jax.Array]


class _Problem(NamedTuple):
  """One step's problem: every evaluation of the step sees exactly this."""

  run: Callable[..., tuple[Any, Any]]
  objective: oracle.Objective
  state: TrainState
  batch: oracle.Batch
  key: jax.Array


def _whole(problem: _Problem, params: Any) -> tuple[jax.Array, _After]:
  carry = problem.state.objective, problem.state.model
  (a, b), (after, seen) = _sums(problem, params, carry, problem.batch, problem.key)
  return _total_of_parts(a, b), _After(after[0], after[1], _step_metrics(*seen))


def _in_parts(problem: _Problem, parts: int, params: Any) -> tuple[jax.Array, _After]:
  rows = {name: x for name, x in problem.batch.items() if jnp.ndim(x)}
  shared = {name: x for name, x in problem.batch.items() if not jnp.ndim(x)}
  split = {name: _split(x, parts) for name, x in rows.items()}

  def sums(params, carry, part):
    rows, key = part
    return _sums(problem, params, carry, {**shared, **rows}, key)

  carry = problem.state.objective, problem.state.model
  keys = jax.random.split(problem.key, parts)
  value, (after, seen) = accumulate(sums, params, carry, (split, keys))
  return value, _After(after[0], after[1], _step_metrics(*seen))


def _split(x: jax.Array, parts: int) -> jax.Array:
  if x.shape[0] % parts:
    raise ValueError(f"micro_batches must divide the batch of {x.shape[0]}, got {parts}")
  return x.reshape(parts, -1, *x.shape[1:])


def _sums(problem: _Problem, params: Any, carry: Any, batch: oracle.Batch, key: jax.Array):
  """Numerators and denominators of the objective's terms on `batch`, and what follows."""
  objective_state, model_state = carry
  objective_key, model_key = jax.random.split(key)
  calls: list[_Call] = []
  forward = _forward(problem.run, params, model_state, model_key, calls, problem.state.teacher)
  terms, objective_state, metrics = problem.objective.apply(
    objective_state, forward, batch, objective_key
  )
  a, b = zip(*map(oracle.sums, terms), strict=True)
  accuracy_sums = {}
  if calls:
    outputs, model_state = jax.lax.stop_gradient((calls[0].outputs, calls[0].after))
    model_state = reduce.worker_mean(model_state)
    accuracy_sums = _accuracy_sums(oracle.named_outputs(outputs), batch)
  return (a, b), ((objective_state, model_state), (accuracy_sums, metrics))


class _Call(NamedTuple):
  """One pass through the model."""

  inputs: jax.Array
  train: bool
  outputs: Any
  after: Any


def _forward(run, params, model_state, key, calls: list[_Call], averages: Any) -> oracle.Forward:
  """What objectives call.

  Every call starts from `model_state`, and the first one's state is kept. Terms of a sum
  that show the model the same inputs share one pass. Calls inside a JAX transformation
  (an attack's loop) need `keep_state=False`: what they compute must not leave it. The
  teacher, if there is one, runs as in evaluation, and leaves nothing.
  """

  def forward(inputs, *, train=True, keep_state=True, teacher=False):
    if teacher:
      return run(*averages, inputs, key, False)[0]
    for call in calls:
      if call.inputs is inputs and call.train == train:
        return call.outputs
    outputs, after = run(params, model_state, inputs, key, train)
    if keep_state:
      calls.append(_Call(inputs, train, outputs, after))
    return outputs

  return forward


def _oracle(settings: _Settings, problem: _Problem, loss_at: Callable[..., Any]) -> oracle.Oracle:
  state = problem.state

  def value(params):
    return loss_at(params)[0]

  if settings.micro_batches > 1:
    return oracle.Oracle(value, state.params)
  objective_key, model_key = jax.random.split(problem.key)

  def forward_at(params):
    if settings.axis_name is not None:
      params = parallel.local_or_mean_grads(params, settings.axis_name)
    return _forward(problem.run, params, state.model, model_key, [], state.teacher)

  return oracle.objective_oracle(
    problem.objective,
    state.objective,
    forward_at,
    problem.batch,
    objective_key,
    state.params,
    value,
  )


def _mixed_precision(model: Model, dtype: Any) -> Callable[..., tuple[Any, Any]]:
  """`model.apply` computed in `dtype`, its outputs and state in float32 again."""
  if dtype == jnp.float32:
    return model.apply

  def run(params, model_state, inputs, key, train):
    params, inputs = _cast_floats((params, inputs), dtype)
    outputs, after = model.apply(params, model_state, inputs, key, train)
    return _cast_floats(outputs, jnp.float32), after

  return run


def _cast_floats(tree: Any, dtype: Any) -> Any:
  def cast(x):
    return x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x

  return jax.tree.map(cast, tree)


def _accuracy_sums(outputs: dict[str, jax.Array], batch: oracle.Batch) -> dict[str, jax.Array]:
  """Sums for the training accuracy, where the objective showed the model as many examples."""
  labels = batch.get("labels")
  if labels is None or outputs["logits"].shape[:-1] != labels.shape:
    return {}
  sums = _evaluation_sums(outputs, batch)
  return {name: sums[name] for name in ("accuracy", "examples")}


def _step_metrics(accuracy_sums: Any, metrics: dict[str, jax.Array]) -> dict[str, jax.Array]:
  """Scalars of the whole batch; the objective's own are averaged over its parts."""
  sums, means = jax.tree.map(jnp.sum, accuracy_sums), jax.tree.map(jnp.mean, metrics)
  if not sums:
    return means
  return {"accuracy": reduce.ratio(sums["accuracy"], sums["examples"]), **means}


def _evaluation_sums(outputs: dict[str, jax.Array], batch: oracle.Batch) -> dict[str, jax.Array]:
  """Sums over the examples, or over their tokens where each has a label, `labels [B, T]`."""
  mask = batch["mask"]
  if "labels" in batch:
    logits, labels = outputs["logits"], batch["labels"]
    mask = jnp.broadcast_to(jnp.expand_dims(mask, range(1, labels.ndim)), labels.shape)
    values = {
      "accuracy": jnp.argmax(logits, axis=-1) == labels,
      "nll": optax.softmax_cross_entropy_with_integer_labels(logits, labels),
    }
  else:
    difference = outputs["predictions"] - batch["targets"]
    values = {"squared_error": jnp.sum(difference.reshape(mask.size, -1) ** 2, axis=-1)}
  sums = {name: reduce.weighted_sum(v, mask) for name, v in values.items()}
  return {"examples": reduce.batch_sum(mask), **sums}


def _total_of_parts(a: Any, b: Any) -> jax.Array:
  totals = ([jnp.sum(parts) for parts in term] for term in (a, b))
  return sum(map(reduce.ratio, *totals), start=jnp.zeros(()))


def _first_bad_leaf(params: Any) -> jax.Array:
  """The number of the first leaf that is not finite; -1 if all are."""
  good = [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(params)]
  good = jnp.stack([*good, jnp.asarray(False)])
  first = jnp.argmin(good)
  return jnp.where(first == good.size - 1, -1, first)


def _seeded(optimizer_state: Any, seed: jax.Array) -> Any:
  """The state with the run's seed in every field called `seed`."""
  if any(hasattr(state, "seed") for state in _named_tuples(optimizer_state)):
    return optax.tree.set(optimizer_state, seed=seed)
  return optimizer_state


def _named_tuples(tree: Any) -> Iterator[Any]:
  if hasattr(tree, "_fields"):
    yield tree
  children: Any = ()
  if isinstance(tree, dict):
    children = tree.values()
  elif isinstance(tree, (tuple, list)):
    children = tree
  for child in children:
    yield from _named_tuples(child)


def _strong(x: Any) -> jax.Array:
  """Weak types would make the second call of a jitted step trace again."""
  return jax.lax.convert_element_type(x, jnp.result_type(x))
