"""Selective gradient masking: what is to be forgotten is learnt by entries that can be removed."""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxrl import check, oracle, reduce


class SgtmState(NamedTuple):
  """State of `sgtm`: for each parameter, true at the entries that are removed in the end."""

  forget: Any


def sgtm(
  split: Mapping[str, tuple[int, int]],
  *,
  forget_group: int = 1,
  retain_group: int | None = None,
) -> optax.GradientTransformationExtraArgs:
  r"""Keeps examples that are to be forgotten from training what is to be kept.

  Some units of the model are given to what is to be forgotten. Of the parameters that `split`
  finds, the units' own entries are F, all others R; parameters that it does not find, J, are
  shared. Examples are of three kinds, by their column `group`, whose shares
  :math:`L_f + L_r + L_d` of the loss train

  .. math::
    u_F = \nabla_F (L_f + L_d)(w), \quad
    u_R = \nabla_R L_d(w) + \nabla_R L_r(\bar w), \quad
    u_J = \nabla_J (L_f + L_d)(w) + \nabla_J L_r(\bar w),

  where :math:`\bar w` is `w` with F at zero: the network without these units. Thus a batch of
  examples to forget leaves R alone, one to retain leaves F alone and does without it, and one
  of neither kind trains everything. The answer, `eval_params`, is :math:`\bar w`.

  With flax's layers, 64 units of a hidden layer are
  `sgtm({"up/kernel$": (1, 64), "up/bias$": (0, 64), "down/kernel$": (0, 64),
  "down/bias$": (0, 0)})`, the last of which is kept as a whole.

  Args:
    split: regular expressions over parameter paths, each with an axis and a number: F is that
      many of the last entries along this axis. The first expression that finds a parameter
      counts.
    forget_group: the group of examples to forget.
    retain_group: the group of examples that train without F, if there is one. All others are
      of neither kind.

  Returns:
    A gradient transformation whose `update` needs `params` and an Oracle with `of_rows` and
    `batch` as `value_fn`.

  Raises:
    ValueError: an expression is none, or finds no parameter (`init`), or the parameter has no
      such axis or too few entries along it; a group is no whole number; `update` was called
      without `params`; or the batch has no `group`.
    TypeError: `value_fn` is not a `jaxrl.oracle.Oracle` with `of_rows` and `batch`, as under
      micro-batches.

  Cost: nothing beyond the incoming gradient for a batch whose examples are all to forget, or
  all of neither kind: it is masked, or passes. One gradient evaluation for a batch of these
  two kinds, one for a batch to retain, three for one of all kinds. The state is one byte for
  each entry along the axes of `split`.

  Notes:
    The official code draws every batch from one kind; so it never pays for a second gradient,
    and neither does this on such batches. Its default, one AdamW for everything, is
    `optax.chain(sgtm(...), optax.adamw(...))`: a masked gradient is zero, but momentum and
    decay go on. The paper's 254M model gives away 64 of 4096 units and one of 32 heads a layer,
    masks embeddings and normalisations too (`(0, 0)` here), and labels one in ten of the
    batches not to forget as `retain_group`. Some are needed: nothing else keeps R from leaning
    on F. On digits, odd ones to forget, a quarter of the last hidden layer of an MLP given away,
    the answer gets 98.7 % of the even test digits right if all even ones are to retain, 19 % if
    none are, and no odd one in either case. Where a unit with its weights and bias at zero
    does not put out zero (a sigmoid), `split` must hold the weights that it feeds. On a mixed
    batch what came in is replaced on R: elements that reshape gradients belong behind. The
    incoming gradient must be that of the whole batch, not a worker's own.

  References:
    [159] Shilov, Cloud, Gema, Goldman-Wetzler, Panickssery, Sleight, Jones, Anil, "Beyond Data
      Filtering: Knowledge Localization for Capability Removal in LLMs", 2025, arXiv:2512.05648
    Baseline: Cloud, Goldman-Wetzler, Wybitul, Miller, Turner, "Gradient Routing: Masking
      Gradients to Localize Computation in Neural Networks", 2024, arXiv:2410.04332

  Example:
    >>> import jax, jax.numpy as jnp
    >>> from jaxrl import oracle
    >>> batch = {"inputs": jnp.ones(1), "group": jnp.array([1])}
    >>> objective = oracle.lift(lambda predictions: predictions)
    >>> forward_at = lambda params: lambda inputs: inputs * jnp.sum(params["up"])
    >>> optimizer, params = sgtm({"up": (0, 1)}), {"up": jnp.ones(3)}
    >>> value_fn = oracle.objective_oracle(objective, (), forward_at, batch, None, params)
    >>> gradient, _ = optimizer.update(
    ...   jax.grad(value_fn)(params), optimizer.init(params), params, value_fn=value_fn)
    >>> print(gradient["up"])
    [0. 0. 1.]
  """
  patterns = {text: check.regex("split", text) for text in split}
  for text, (_, number) in split.items():
    check.whole(f"split[{text!r}]'s number", number, 0)
  check.whole("forget_group", forget_group, 0)
  if retain_group is not None:
    check.whole("retain_group", retain_group, 0)

  def init_fn(params):
    found = _found(params, patterns)

    def removed(path, w):
      text = found[_path(path)]
      return _last_entries(_path(path), w, (0, 0) if text is None else split[text])

    return SgtmState(jax.tree.map_with_path(removed, params))

  def update_fn(updates, state, params=None, *, value_fn=None, **extra_args):
    del extra_args
    check.params("sgtm", params)
    value_fn = oracle.need_oracle("sgtm", value_fn)
    group = check.array("sgtm", "group", value_fn.batch.get("group"))
    forget = group == forget_group
    retain = jnp.zeros_like(forget) if retain_group is None else group == retain_group
    anyone, without = updates, updates
    if retain_group is not None:
      anyone = _of_rows(value_fn, ~retain, params, updates, updates)
      without = _of_rows(value_fn, retain, eval_params(state, params), updates, None)
    neither = _of_rows(value_fn, ~forget & ~retain, params, updates, updates)
    found = _found(params, patterns)

    def combined(path, f, a, n, w):
      if found[_path(path)] is not None:
        a = jnp.where(f, a, n)
      return a if retain_group is None else a + jnp.where(f, 0, w)

    updates = jax.tree.map_with_path(combined, state.forget, anyone, neither, without)
    return updates, state

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def eval_params(state: SgtmState, params: Any) -> Any:
  """The parameters without the entries that learnt what is to be forgotten: [159]'s ablation."""
  return jax.tree.map(lambda f, w: jnp.where(f, 0, w).astype(w.dtype), state.forget, params)


def _of_rows(
  value_fn: oracle.Oracle, rows: jax.Array, point: Any, updates: Any, of_all: Any
) -> Any:
  """The gradient of these rows' share; computed only if they are some of the rows, not all.

  Of no rows it is zero, of all rows `of_all`, if that is known.
  """

  def gradient():
    share = jax.grad(lambda point: value_fn.of_rows(point, rows, share=True))(point)
    return jax.tree.map(lambda g, u: g.astype(u.dtype), share, updates)

  def count(rows):
    return reduce.batch_sum(oracle.mask_of(value_fn.batch, rows))

  some = gradient
  if of_all is not None:
    some = lambda: jax.lax.cond(count(~rows) > 0, gradient, lambda: of_all)  # noqa: E731
  return jax.lax.cond(count(rows) > 0, some, lambda: jax.tree.map(jnp.zeros_like, updates))


def _found(params: Any, patterns: Mapping[str, re.Pattern[str]]) -> dict[str, str | None]:
  """For every parameter's path the first expression that finds it; each must find one."""
  paths = [_path(path) for path, _ in jax.tree.leaves_with_path(params)]
  for text, pattern in patterns.items():
    if not any(pattern.search(path) for path in paths):
      shown = ", ".join(paths[:5]) + (", ..." if len(paths) > 5 else "")
      raise ValueError(f"split[{text!r}] finds no parameter; there are: {shown or 'none'}")

  def first(path):
    return next((text for text, pattern in patterns.items() if pattern.search(path)), None)

  return {path: first(path) for path in paths}


def _last_entries(path: str, w: jax.Array, chosen: tuple[int, int]) -> jax.Array:
  """Booleans that broadcast to `w`, true at the last entries along an axis."""
  shape = [1] * jnp.ndim(w)
  axis, number = chosen
  if number == 0:
    return jnp.zeros(shape, bool)
  if not -len(shape) <= axis < len(shape) or number > jnp.shape(w)[axis]:
    raise ValueError(
      f"split must name an axis of {path}, of shape {jnp.shape(w)}, and at most as many entries "
      f"as it has, got {chosen}"
    )
  shape[axis] = jnp.shape(w)[axis]
  last = jnp.arange(shape[axis]) >= shape[axis] - number
  return last.reshape(shape)


def _path(path: tuple[Any, ...]) -> str:
  return jax.tree_util.keystr(path, simple=True, separator="/")
