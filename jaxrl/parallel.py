"""Many devices: meshes, shardings, and what crosses between the workers of a step.

A worker is one position along a mesh axis that splits the batch. With global gradients XLA
partitions the step and nothing here is seen by a method. With local gradients the step runs
once a worker, inside `shard_map(check_vma=True)`, and methods with an `axis_name` exchange
what they choose to.
"""

import functools
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from .oracle import PerWorker
from .reduce import AxisName

BATCH_AXES = ("data", "group", "fsdp")
"""Mesh axes that split the batch; `fsdp` splits parameters and optimizer state as well."""


def make_mesh(text: str) -> Mesh:
  """The mesh that `data=4,fsdp=2` describes, over all devices, with Auto axes.

  Raises:
    ValueError: the text does not read so, or the sizes don't multiply to the devices.
  """
  sizes = {}
  for part in text.split(","):
    match = re.fullmatch(r"\s*(\w+)\s*=\s*([1-9]\d*)\s*", part)
    if match is None or match[1] not in BATCH_AXES or match[1] in sizes:
      raise ValueError(f"mesh must read like data=4,fsdp=2, got {text!r}")
    sizes[match[1]] = int(match[2])
  if math.prod(sizes.values()) != jax.device_count():
    raise ValueError(
      f"mesh must have as many places as devices, {jax.device_count()}, got {text!r}"
    )
  return jax.make_mesh(tuple(sizes.values()), tuple(sizes), (AxisType.Auto,) * len(sizes))


def check_mesh(mesh: Mesh) -> None:
  """ValueError for a mesh with Explicit axes, which no step here is written for."""
  explicit = [
    n for n, t in zip(mesh.axis_names, mesh.axis_types, strict=True) if t != AxisType.Auto
  ]
  if explicit:
    raise ValueError(f"mesh axes must be Auto, as jaxrl.parallel.make_mesh makes them: {explicit}")


def state_shardings(state: Any, mesh: Mesh, axis_name: AxisName | None = None) -> Any:
  """How a train state lies on the mesh.

  A leaf whose first axis the size of `fsdp` divides is split over it; a `PerWorker` leaf is
  split over `axis_name`, if there is one; all else is replicated.
  """
  check_mesh(mesh)

  def of_leaf(leaf, front=()):
    shape, fsdp = np.shape(leaf)[len(front) :], mesh.shape.get("fsdp", 1)
    split = fsdp > 1 and bool(shape) and shape[0] > 0 and shape[0] % fsdp == 0
    return NamedSharding(mesh, PartitionSpec(*front, *(("fsdp",) if split else ())))

  def of_node(node):
    if not isinstance(node, PerWorker):
      return of_leaf(node)
    front = () if axis_name is None else (axis_name,)
    return jax.tree.map(lambda leaf: of_leaf(leaf, front), node)

  return jax.tree.map(of_node, state, is_leaf=_is_per_worker)


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Examples split over every axis of the mesh."""
  check_mesh(mesh)
  return NamedSharding(mesh, PartitionSpec(mesh.axis_names))


class Program(NamedTuple):
  """The functions of a run, laid out on the devices.

  Attributes:
    init: `init(seed)`, the first state.
    abstract_state: its shapes, dtypes and shardings.
    step: `step(state, batch)`, jitted, the state donated.
    evaluate: `evaluate(state, batch)`, jitted.
    predict: `predict(state, batch)`, jitted; the whole batch's predictions on every device.
    place: puts this process's part of a batch of NumPy arrays on its devices.
    places: the number of parts in which a batch is cut.
  """

  init: Callable[[int], Any]
  abstract_state: Any
  step: Any
  evaluate: Any
  predict: Any
  place: Callable[[Mapping[str, np.ndarray]], Mapping[str, Any]]
  places: int


def lay_out(train: Any, mesh: Mesh | None, axis_name: AxisName | None, seed: int) -> Program:
  """A `jaxrl.train.Train` on one device (no mesh), over a mesh, or once a worker.

  Args:
    train: its functions.
    mesh: of all devices, with Auto axes; `None` for one device.
    axis_name: the mesh axes over which `train` was made for workers, if it was.
    seed: any seed, for shapes.
  """
  if mesh is None:
    shapes = jax.eval_shape(train.init, seed)
    step = jax.jit(train.step, donate_argnums=0)
    evaluate, predict = jax.jit(train.evaluate), jax.jit(train.predict)
    return Program(jax.jit(train.init), shapes, step, evaluate, predict, lambda b: b, 1)
  init, step = train.init, train.step
  if axis_name is not None:
    workers = math.prod(mesh.shape[name] for name in _names(axis_name))
    init = lambda seed: with_worker_axis(train.init(seed), workers)  # noqa: E731
    step = per_worker_step(train.step, mesh, axis_name)
  shapes = jax.eval_shape(init, seed)
  states, batches = state_shardings(shapes, mesh, axis_name), batch_sharding(mesh)
  everywhere = NamedSharding(mesh, PartitionSpec())

  def place(batch):
    put = functools.partial(jax.make_array_from_process_local_data, batches)
    return {name: put(array) for name, array in batch.items()}

  return Program(
    jax.jit(init, out_shardings=states),
    jax.tree.map(_with_sharding, shapes, states),
    jax.jit(
      step, in_shardings=(states, batches), out_shardings=(states, everywhere), donate_argnums=0
    ),
    jax.jit(train.evaluate, in_shardings=(states, batches), out_shardings=everywhere),
    jax.jit(train.predict, in_shardings=(states, batches), out_shardings=everywhere),
    place,
    mesh.size,
  )


def _with_sharding(shape: jax.ShapeDtypeStruct, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding)


def with_worker_axis(state: Any, workers: int) -> Any:
  """The state with every `PerWorker` leaf repeated along a new leading axis."""

  def repeat(leaf):
    return jnp.broadcast_to(leaf, (workers, *jnp.shape(leaf)))

  return _map_per_worker(repeat, state)


def per_worker_step(
  step: Callable[[Any, Any], tuple[Any, Any]], mesh: Mesh, axis_name: AxisName
) -> Callable[[Any, Any], tuple[Any, Any]]:
  """`step` run once a worker along `axis_name`, on the worker's own part of the batch.

  `PerWorker` leaves lose their worker axis inside; everything else must come out equal on
  all workers, which `check_vma` proves when the step is traced.
  """
  check_mesh(mesh)

  def on_worker(state, batch):
    state, metrics = step(_map_per_worker(lambda leaf: leaf[0], state), batch)
    return _map_per_worker(lambda leaf: leaf[None], state), metrics

  def specs_of(state):
    def of_node(node):
      spec = PartitionSpec(axis_name) if _is_per_worker(node) else PartitionSpec()
      return jax.tree.map(lambda _: spec, node)

    return jax.tree.map(of_node, state, is_leaf=_is_per_worker)

  def run(state, batch):
    specs = specs_of(state)
    sharded = jax.shard_map(
      on_worker,
      mesh=mesh,
      in_specs=(specs, PartitionSpec(axis_name)),
      out_specs=(specs, PartitionSpec()),
      axis_names=set(_names(axis_name)),
      check_vma=True,
    )
    return sharded(state, batch)

  return run


def gather(x: jax.Array, axis_name: AxisName) -> jax.Array:
  """`x` of all workers along a new first axis, the same on each of them.

  Works under `shard_map`, `pmap` and `vmap(axis_name=...)`.
  """
  if _in_shard_map(axis_name):
    return jax.lax.all_gather(x, axis_name, to="invarying")
  return jax.lax.all_gather(x, axis_name)


def vary(tree: Any, axis_name: AxisName) -> Any:
  """The same values, typed as each worker's own, so that their gradients stay local."""
  if not _in_shard_map(axis_name):
    return tree

  def cast(x):
    missing = tuple(name for name in _names(axis_name) if name not in _varying(x))
    return jax.lax.pcast(x, missing, to="varying") if missing else x

  return jax.tree.map(cast, tree)


def local_or_mean_grads(tree: Any, axis_name: AxisName) -> Any:
  """Parameters for a worker's loss: own values keep local gradients, shared ones get the mean.

  The gradient at a point that all workers share is a shared quantity, the mean of the local
  ones; at a point of a worker's own it is that worker's.
  """
  own = set(_names(axis_name))
  shared = jax.tree.map(lambda x: not own <= _varying(x), tree)
  return jax.tree.map(lambda x, s: mean_grads(x, axis_name) if s else x, tree, shared)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def mean_grads(tree: Any, axis_name: AxisName) -> Any:
  """The identity, whose gradients are averaged over the workers.

  Under `pmap`, where gradients are local, this makes `grad(loss)` global.
  """
  return vary(tree, axis_name)


def _mean_grads_forward(tree, axis_name):
  return vary(tree, axis_name), None


def _mean_grads_backward(axis_name, _, cotangents):
  return (jax.lax.pmean(cotangents, axis_name),)


mean_grads.defvjp(_mean_grads_forward, _mean_grads_backward)


def size(axis_name: AxisName) -> int:
  """The number of workers."""
  return math.prod(jax.lax.axis_size(name) for name in _names(axis_name))


def own_gradient(method: str, gradient: Any, axis_name: AxisName) -> Any:
  """`gradient`, which has to be each worker's own along `axis_name`.

  Raises:
    ValueError: there are no such workers, or all of them share the gradient (which cannot be
      seen under `vmap` and `pmap`).
  """
  try:
    size(axis_name)
  except NameError as error:
    raise ValueError(
      f"axis_name={axis_name!r} is no axis of workers here: {method} needs a step with local "
      "gradients over it (scripts.train --gradients local)"
    ) from error
  own = vary(gradient, axis_name)
  if _differs_along(own) - _differs_along(gradient):
    raise ValueError(
      f"{method} needs each worker's own gradient, and got one that all workers along "
      f"axis_name={axis_name!r} share: leave out what averages it in front of {method}, or "
      f"take the gradient at jaxrl.parallel.vary(params, {axis_name!r})"
    )
  return own


def _differs_along(tree: Any) -> frozenset[str]:
  return frozenset().union(*map(_varying, jax.tree.leaves(tree)))


def _names(axis_name: AxisName) -> tuple[str, ...]:
  return (axis_name,) if isinstance(axis_name, str) else axis_name


def _in_shard_map(axis_name: AxisName) -> bool:
  return set(_names(axis_name)) <= set(jax.sharding.get_abstract_mesh().manual_axes)


def _varying(x: Any) -> frozenset[str]:
  return jax.typeof(x).manual_axis_type.varying


def _is_per_worker(node: Any) -> bool:
  return isinstance(node, PerWorker)


def _map_per_worker(function: Callable[[Any], Any], tree: Any) -> Any:
  def of_node(node):
    return jax.tree.map(function, node) if _is_per_worker(node) else node

  return jax.tree.map(of_node, tree, is_leaf=_is_per_worker)
