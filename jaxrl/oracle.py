"""What flows between a model and an optimizer: Losses, Objectives and the Oracle.

A loss gives per-example values. `Losses` carries them with weights and a denominator
through loss transforms. An `Objective` is the pair `(init, apply)` that a train step
sees. An `Oracle` is this step's loss as a function of the parameters, which can also
show its parts.
"""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from . import reduce

Batch = Mapping[str, jax.Array]
Forward = Callable[..., Any]
LossTransform = optax.GradientTransformationExtraArgs
BatchTransform = Callable[[jax.Array, Batch], Batch]


class Losses(NamedTuple):
  """Per-example losses on their way to a scalar; three arrays of one shape.

  The scalar is `sum(weights * values) / sum(norm)`. `weights` and `norm` are constants
  for the gradient, and start as the batch's mask.
  """

  values: jax.Array
  weights: jax.Array
  norm: jax.Array


class PerWorker(NamedTuple):
  """State that differs between the workers of a step with local gradients.

  Methods see their own worker's values. Between steps every leaf has a leading axis over
  the workers, and is sharded over it.
  """

  tree: Any


class Objective(NamedTuple):
  """What a train step minimises.

  `init(key) -> state`, and `apply(state, forward, batch, key) -> (terms, state,
  metrics)`: `forward(inputs, **options)` runs the model at the parameters under test,
  `terms` is a tuple of Losses that are reduced one by one and added.

  With a `teacher`, the train step keeps an average of the model's weights, which decays by
  that factor a step, and `forward(inputs, teacher=True)` runs that, as in evaluation.
  """

  init: Callable[[jax.Array], Any]
  apply: Callable[..., tuple[tuple[Losses, ...], Any, dict[str, jax.Array]]]
  teacher: float | None = None


def masked_losses(values: jax.Array, mask: jax.Array | None) -> Losses:
  """Losses whose weights and norm are the batch's mask (`None` counts every example).

  A mask `[B]` is spread over values `[B, T]`.
  """
  if mask is None:
    ones = jnp.ones_like(values)
    return Losses(values, ones, ones)
  mask = mask.reshape(mask.shape + (1,) * (values.ndim - mask.ndim))
  weights = jnp.broadcast_to(mask, values.shape).astype(values.dtype)
  return Losses(values, weights, weights)


def total(terms: Sequence[Losses]) -> jax.Array:
  """The scalar of an objective: each term reduced to its weighted mean, and added."""
  return sum((_mean(term) for term in terms), start=jnp.zeros(()))


def sums(term: Losses) -> tuple[jax.Array, jax.Array]:
  """Numerator and denominator of one term.

  Where each worker sees a part of the batch, the numerator is the worker's and the
  denominator that of the whole batch.
  """
  weights, norm = jax.lax.stop_gradient((term.weights, term.norm))
  return jnp.sum(reduce.weighted(term.values, weights)), reduce.batch_sum(norm)


def _mean(term: Losses) -> jax.Array:
  return reduce.ratio(*sums(term))


def named_outputs(outputs: Any) -> dict[str, jax.Array]:
  """A model's outputs by glossary name; a bare array serves as logits and predictions."""
  if isinstance(outputs, Mapping):
    return dict(outputs)
  return {"logits": outputs, "predictions": outputs}


def lift(loss: Callable[..., jax.Array]) -> Objective:
  """An Objective from a plain loss, its arrays found by argument name.

  Arrays come from the model's outputs first, then from the batch. A loss of `targets`
  on a batch that has only integer `labels` gets them one-hot.
  """
  names = _array_names(loss)

  def apply(state, forward, batch, key):
    del key
    arrays = {**batch, **named_outputs(forward(batch["inputs"]))}
    if "targets" in names and "targets" not in arrays and "labels" in arrays:
      arrays["targets"] = _one_hot_like(arrays["labels"], arrays["predictions"])
    missing = [name for name in names if name not in arrays]
    if missing:
      raise ValueError(
        f"{_name_of(loss)} needs {missing}; the batch and the model give {sorted(arrays)}"
      )
    values = loss(*(arrays[name] for name in names))
    return (masked_losses(values, batch.get("mask")),), state, {}

  return Objective(lambda key: (), apply)


def transform_losses(objective: Objective, transform: LossTransform) -> Objective:
  """`objective | transform`. Several terms of one shape become one, value by value.

  The transform sees the batch's arrays and the model's outputs as extra arguments.
  """

  def init(key):
    empty = jnp.zeros((0,))
    return objective.init(key), transform.init(Losses(empty, empty, empty))

  def apply(state, forward, batch, key):
    seen: dict[str, jax.Array] = {}

    def recording_forward(inputs, **options):
      outputs = forward(inputs, **options)
      if not options.get("teacher"):
        seen.update(named_outputs(outputs))
      return outputs

    terms, inner, metrics = objective.apply(state[0], recording_forward, batch, key)
    extras = {**batch, **seen}
    extras.pop("inputs", None)
    losses: Any
    losses, outer = transform.update(_merge(terms), state[1], None, **extras)
    return (losses,), (inner, outer), metrics

  return Objective(init, apply, objective.teacher)


def transform_batch(transform: BatchTransform, objective: Objective) -> Objective:
  """`transform | objective`: the batch is transformed before the forward pass."""

  def apply(state, forward, batch, key):
    batch_key, key = jax.random.split(key)
    return objective.apply(state, forward, transform(batch_key, batch), key)

  return Objective(objective.init, apply, objective.teacher)


def weighted_sum(parts: Sequence[tuple[float, Objective]]) -> Objective:
  """`c1 * first + c2 * second + ...`, each reduced by its own denominator.

  Raises:
    ValueError: parts want teachers of different decay.
  """
  teachers = {part.teacher for _, part in parts if part.teacher is not None}
  if len(teachers) > 1:
    raise ValueError(f"the parts of a sum share one teacher, got decays {sorted(teachers)}")

  def init(key):
    keys = jax.random.split(key, len(parts))
    return tuple(part.init(k) for k, (_, part) in zip(keys, parts, strict=True))

  def apply(state, forward, batch, key):
    terms: list[Losses] = []
    states, metrics = [], {}
    keys = jax.random.split(key, len(parts))
    for i, (coefficient, part) in enumerate(parts):
      added, part_state, part_metrics = part.apply(state[i], forward, batch, keys[i])
      terms += [term._replace(values=coefficient * term.values) for term in added]
      states.append(part_state)
      metrics |= part_metrics
    return tuple(terms), tuple(states), metrics

  return Objective(init, apply, next(iter(teachers), None))


class Oracle:
  """This step's loss as a function of the parameters, able to show its parts.

  Calling it gives the scalar loss. It closes over batch and dropout key, so every
  evaluation of a step sees the same problem. Where it is handed `optax.MaskedNode`, it
  puts the step's own parameters, so that methods which evaluate the loss work under
  `optax.masked` and `optax.partition`. A part that it was not given raises TypeError.
  """

  def __init__(
    self,
    value: Callable[[Any], jax.Array],
    params: Any,
    *,
    outputs: Callable[..., Any] | None = None,
    loss_of: Callable[[Any], jax.Array] | None = None,
    losses: Callable[[Any], jax.Array] | None = None,
    of_slice: Callable[[Any, jax.typing.ArrayLike, int], jax.Array] | None = None,
    of_rows: Callable[[Any, jax.Array, bool], jax.Array] | None = None,
    batch: Batch | None = None,
  ):
    self._value = value
    self._params = params
    self._parts: dict[str, Any] = {
      "outputs": outputs,
      "loss_of": loss_of,
      "losses": losses,
      "of_slice": of_slice,
      "of_rows": of_rows,
      "batch": batch,
    }

  def __call__(self, params: Any) -> jax.Array:
    """The scalar loss at `params`."""
    return self._value(self._filled(params))

  def outputs(self, params: Any, inputs: jax.Array | None = None) -> Any:
    """The model's outputs at `params`, on other `inputs` than the batch's if they are given."""
    other = () if inputs is None else (inputs,)
    return self._part("outputs")(self._filled(params), *other)

  def loss_of(self, outputs: Any) -> jax.Array:
    """The scalar loss of given model outputs."""
    return self._part("loss_of")(outputs)

  def losses(self, params: Any) -> jax.Array:
    """A vector `[m]`: a loss per example (their mean is the loss) or per term (their sum is)."""
    return self._part("losses")(self._filled(params))

  def of_slice(self, params: Any, index: jax.typing.ArrayLike, slices: int) -> jax.Array:
    """The loss on slice `index` of `slices` equal ones of the batch; their mean is the loss."""
    return self._part("of_slice")(self._filled(params), index, slices)

  def of_rows(self, params: Any, rows: jax.Array, *, share: bool = False) -> jax.Array:
    """The loss on the rows `[B]` that are true, as if the others were masked.

    With `share`, these rows' share of the loss: those of a partition add up to the loss.
    """
    return self._part("of_rows")(self._filled(params), rows, share)

  @property
  def batch(self) -> Batch:
    """The columns of this step's batch, such as `group [B]`."""
    return self._part("batch")

  def _part(self, name: str) -> Any:
    part = self._parts[name]
    if part is None:
      raise TypeError(
        f"this Oracle has no `{name}` (none has under micro-batches): "
        f"make it with Oracle(..., {name}=...)"
      )
    return part

  def _filled(self, params: Any) -> Any:
    def fill(handed, own):
      return own if _is_masked(handed) else handed

    return jax.tree.map(fill, params, self._params, is_leaf=_is_masked)


def need_oracle(method: str, value_fn: Any) -> Oracle:
  """`value_fn` if it is an Oracle; a TypeError that says what to pass otherwise."""
  if isinstance(value_fn, Oracle):
    return value_fn
  raise TypeError(
    f"{method} needs the parts of the loss: pass value_fn=jaxrl.oracle.Oracle(loss, "
    "params, outputs=..., loss_of=..., losses=..., of_slice=..., of_rows=..., batch=...), "
    f"got {value_fn!r}"
  )


def objective_oracle(
  objective: Objective,
  state: Any,
  forward_at: Callable[[Any], Forward],
  batch: Batch,
  key: jax.Array,
  params: Any,
  value: Callable[[Any], jax.Array] | None = None,
) -> Oracle:
  """The Oracle of one step: `objective` from `state`, on `batch`, as a function of params.

  Args:
    objective: what is minimised.
    state: its state before the step; every evaluation starts from it.
    forward_at: `forward_at(params)` is the `forward` that `objective.apply` gets.
    batch: this step's batch.
    key: this step's key.
    params: this step's parameters.
    value: the scalar loss, where it is computed otherwise than in one pass over the
      batch (micro-batches).

  A slice goes through the objective as a micro-batch would, each from `state` and with
  `key`: denominators are those of the whole batch, other statistics the slice's own. Rows are
  chosen by the mask: the model sees the whole batch, and so do statistics in its layers.
  """

  def terms_with(forward, batch=batch):
    return objective.apply(state, forward, batch, key)[0]

  def outputs(params, inputs=None):
    if inputs is not None:
      return forward_at(params)(inputs)
    calls = []

    def recording_forward(inputs, **options):
      outputs = forward_at(params)(inputs, **options)
      if not options.get("teacher"):
        calls.append(outputs)
      return outputs

    terms_with(recording_forward)
    if len({id(call) for call in calls}) != 1:
      raise TypeError(f"outputs() needs an objective with one forward pass, not {len(calls)}")
    return calls[0]

  def loss_of(outputs):
    def given(inputs, **options):
      return forward_at(params)(inputs, **options) if options.get("teacher") else outputs

    return total(terms_with(given))

  def losses(params):
    terms = terms_with(forward_at(params))
    if len(terms) != 1:
      return jnp.stack([_mean(term) for term in terms])
    return _contributions(terms[0])

  def of_slice(params, index, slices):
    def terms_of(params, index):
      return terms_with(forward_at(params), _batch_slice(batch, index, slices))

    def norms_of(index):
      return [jnp.sum(term.norm) for term in terms_of(jax.lax.stop_gradient(params), index)]

    # Only what the norms depend on is left of these passes once they are compiled.
    norms = jax.lax.map(norms_of, jnp.arange(slices))
    numerators = [sums(term)[0] for term in terms_of(params, index)]
    parts = map(reduce.ratio, numerators, map(reduce.batch_sum, norms))
    return slices * reduce.workers() * sum(parts, start=jnp.zeros(()))

  def of_rows(params, rows, share):
    own = terms_with(forward_at(params), {**batch, "mask": mask_of(batch, rows)})
    # Only what the norms depend on is left of this pass once it is compiled.
    whole = terms_with(forward_at(jax.lax.stop_gradient(params))) if share else own
    norms = [reduce.batch_sum(jax.lax.stop_gradient(term.norm)) for term in whole]
    parts = map(reduce.ratio, [sums(term)[0] for term in own], norms)
    return reduce.workers() * sum(parts, start=jnp.zeros(()))

  if value is None:
    value = lambda params: total(terms_with(forward_at(params)))  # noqa: E731
  return Oracle(
    value,
    params,
    outputs=outputs,
    loss_of=loss_of,
    losses=losses,
    of_slice=of_slice,
    of_rows=of_rows,
    batch=batch,
  )


def mask_of(batch: Batch, rows: jax.Array) -> jax.Array:
  """The mask of a batch, zero outside of the `rows [B]` that are true."""
  kept = rows.astype(jnp.float32)
  mask = batch.get("mask")
  return kept if mask is None else mask * kept.reshape(kept.shape + (1,) * (mask.ndim - 1))


def _batch_slice(batch: Batch, index: jax.typing.ArrayLike, slices: int) -> Batch:
  """The rows of one of `slices` equal slices; scalars belong to all of them."""

  def rows(x):
    if x.shape[0] % slices:
      raise ValueError(f"slices must divide the batch of {x.shape[0]}, got {slices}")
    size = x.shape[0] // slices
    return jax.lax.dynamic_slice_in_dim(x, index * size, size)

  return {name: rows(x) if jnp.ndim(x) else x for name, x in batch.items()}


def _contributions(term: Losses) -> jax.Array:
  weights, norm = jax.lax.stop_gradient((term.weights, term.norm))
  scale = reduce.ratio(jnp.asarray(weights.size, weights.dtype), reduce.batch_sum(norm))
  return (scale * weights * jnp.where(weights == 0, 0, term.values)).reshape(-1)


def _merge(terms: Sequence[Losses]) -> Losses:
  shapes = {term.values.shape for term in terms}
  if len(shapes) > 1:
    raise ValueError(f"a loss transform needs terms of one shape, got {sorted(shapes)}")
  return terms[0]._replace(values=sum((term.values for term in terms[1:]), terms[0].values))


def _array_names(loss: Callable[..., Any]) -> list[str]:
  positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
  parameters = inspect.signature(loss).parameters.values()
  return [p.name for p in parameters if p.kind in positional and p.default is p.empty]


def _one_hot_like(labels: jax.Array, predictions: jax.Array) -> jax.Array:
  if not jnp.issubdtype(labels.dtype, jnp.integer):
    return labels.astype(predictions.dtype)
  return jax.nn.one_hot(labels, predictions.shape[-1], dtype=predictions.dtype)


def _name_of(loss: Callable[..., Any]) -> str:
  return loss.func.__name__ if isinstance(loss, functools.partial) else loss.__name__


def _is_masked(node: Any) -> bool:
  return isinstance(node, optax.MaskedNode)
