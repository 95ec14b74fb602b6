"""What crosses between workers in a whole train step, by the operands of its collectives."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrl import fit, models, parallel, spec, train
from optimizers.compressors.rand_k import rand_k
from optimizers.compressors.scaled_sign import scaled_sign
from optimizers.compressors.top_k import top_k
from optimizers.econtrol import econtrol
from optimizers.ef14 import ef14
from optimizers.ef21 import ef21
from optimizers.ef21_w import ef21_w
from tests import hlo, tiers

pytestmark = tiers.unless_changed(
  "optimizers/compressors/", "optimizers/ef14", "optimizers/ef21", "optimizers/econtrol"
)

WORKERS, CLASSES, SIDE = 8, 10, 8


def batch():
  rng = np.random.default_rng(0)
  return {
    "inputs": rng.normal(size=(16, SIDE, SIDE, 1)).astype(np.float32),
    "labels": rng.integers(CLASSES, size=16).astype(np.int32),
    "mask": np.ones(16, np.float32),
    "index": np.arange(16, dtype=np.int32),
  }


def mean_gradient():
  """What distributed SGD sends."""
  return optax.stateless(lambda g, _: jax.lax.pmean(g, "data"))


SPARSE = {"axis_name": "data", "init": "compressed"}
VARIANTS = {
  "ef14": lambda: ef14(top_k(0.01), axis_name="data"),
  "ef21_w": lambda: ef21_w(top_k(0.01), range(1, WORKERS + 1), **SPARSE),
  "econtrol": lambda: econtrol(top_k(0.01), 0.01, **SPARSE),
  "options": lambda: ef21(top_k(0.01), momentum=0.1, participants=4, downlink=top_k(0.5), **SPARSE),
  "own keys": lambda: ef21(rand_k(0.01), **SPARSE),
  "shared key": lambda: ef21(rand_k(0.01, key="shared"), **SPARSE),
  "plus": lambda: ef21(top_k(0.01), plus=True, **SPARSE),
  "signs": lambda: ef14(scaled_sign(), axis_name="data"),
}


BYTES = {"ef14": 4, "signs": 4, "econtrol": 12, "options": 16}  # a parameter; 8 of the others


@functools.cache
def compiled(method):
  """The step of a worker, its first state on the mesh, and the sizes of the parameters."""
  optimizer = {
    "sgd": mean_gradient,
    "compressed": lambda: ef21(top_k(0.01), axis_name="data", init="compressed"),
    "full": lambda: ef21(top_k(0.01), axis_name="data"),
    **VARIANTS,
  }[method]()
  mesh = parallel.make_mesh(f"data={WORKERS}")
  parts = train.make_train(
    models.make("mlp", CLASSES),
    spec.objective("cross_entropy()"),
    optax.chain(optimizer, optax.sgd(0.1)),
    jnp.zeros((1, SIDE, SIDE, 1)),
    axis_name="data",
  )
  state = parallel.with_worker_axis(jax.jit(parts.init)(0), WORKERS)
  state = jax.device_put(state, parallel.state_shardings(state, mesh, "data"))
  examples = jax.device_put(batch(), parallel.batch_sharding(mesh))
  step = jax.jit(parallel.per_worker_step(parts.step, mesh, "data"))
  sizes = [leaf.size for leaf in jax.tree.leaves(state.params)]
  return step.lower(state, examples).compile(), state, examples, sizes


def traffic(method):
  step, *_, sizes = compiled(method)
  return hlo.collectives(step.as_text()), sizes


def sent_by_all(found):
  return WORKERS * sum(collective.bytes for collective in found)


def bound(sizes):
  """Eight bytes for each entry of Top-1 % and 64 bytes of scalars, over all workers."""
  return WORKERS * 8 * sum(math.ceil(size / 100) for size in sizes) + 64


def test_ef21_sends_its_entries_and_a_few_scalars():
  found, sizes = traffic("compressed")
  assert sent_by_all(found) <= bound(sizes)
  assert {c.kind for c in found if c.bytes > 8} == {"all-gather"}
  assert not any(c.within for c in found)


def test_ef21_with_full_init_has_one_dense_all_reduce_in_the_branch_of_the_first_step():
  found, sizes = traffic("full")
  dense = [c for c in found if c.bytes >= 4 * max(sizes)]
  assert [(c.kind, c.bytes, c.within) for c in dense] == [
    ("all-reduce", 4 * sum(sizes), ("conditional",))
  ]
  rest = [c for c in found if c not in dense]
  assert sent_by_all(rest) == sent_by_all(traffic("compressed")[0])
  gathers = [c for c in rest if c.kind == "all-gather"]
  assert gathers and {c.within for c in gathers} == {("conditional",)}
  assert dense[0].computation not in {c.computation for c in gathers}


def test_distributed_sgd_is_found_to_send_the_whole_gradient():
  found, sizes = traffic("sgd")
  (dense,) = [c for c in found if c.bytes > 8]  # scalars may travel with the gradient
  assert dense.kind == "all-reduce" and 0 <= dense.bytes - 4 * sum(sizes) <= 8
  assert sent_by_all(found) > bound(sizes)


@pytest.mark.parametrize("method", ["compressed", "full"])
def test_ef21_reports_what_a_worker_sends(method):
  step, state, examples, sizes = compiled(method)
  gathered = sum(c.bytes for c in traffic(method)[0] if c.kind == "all-gather")
  reported = []
  for _ in range(2):
    state, metrics = step(state, examples)
    reported.append(float(metrics["ef21/bytes_sent"]))
  assert reported == [4 * sum(sizes) if method == "full" else gathered, gathered]


@pytest.mark.parametrize("method", ["ef14", "ef21_w", "econtrol", "options", "own keys"])
def test_variants_send_their_entries_and_a_few_scalars(method):
  found, sizes = traffic(method)
  assert sent_by_all(found) <= bound(sizes)
  assert {c.kind for c in found if c.bytes > 8} == {"all-gather"}
  assert not any(c.within for c in found)


@pytest.mark.parametrize("method", VARIANTS)
def test_variants_report_what_a_worker_sends_and_keep_what_they_say(method):
  step, state, examples, sizes = compiled(method)
  found, _ = traffic(method)
  if method == "shared key":
    sent = 4 * sum(math.ceil(size / 100) for size in sizes)
    assert 0 <= sum(c.bytes for c in found) - sent <= 16
  else:
    sent = sum(c.bytes for c in found if c.kind == "all-gather") + 4 * (method == "plus")
  kept = sum(map(fit._bytes_on_one_device, jax.tree.leaves(state.optimizer))) / sum(sizes)
  assert kept == pytest.approx(BYTES.get(method, 8), abs=0.01)
  _, metrics = step(state, examples)
  (reported,) = (value for name, value in metrics.items() if name.endswith("/bytes_sent"))
  assert reported == sent


def test_with_a_shared_key_values_alone_are_reduced():
  found, sizes = traffic("shared key")
  entries = sum(math.ceil(size / 100) for size in sizes)
  assert {c.kind for c in found} == {"all-reduce"}
  assert 4 * entries <= sum(c.bytes for c in found) <= 4 * entries + 16


def test_signs_are_sent_in_bits():
  found, sizes = traffic("signs")
  wanted = sum(math.ceil(size / 8) + 4 for size in sizes)
  assert sum(c.bytes for c in found if c.kind == "all-gather") == wanted
  assert sum(c.bytes for c in found) <= wanted + 16


def test_ef21_plus_is_dense_in_a_branch_alone():
  found, sizes = traffic("plus")
  dense = [c for c in found if c.bytes >= 4 * max(sizes)]
  assert [(c.kind, c.bytes, c.within) for c in dense] == [
    ("all-reduce", 4 * sum(sizes), ("conditional",))
  ]
  rest = [c for c in found if c not in dense]
  assert sent_by_all(rest) <= bound(sizes)
  assert {c.computation for c in rest if c.kind == "all-gather"} != {dense[0].computation}
  assert {c.within for c in rest if c.kind == "all-gather"} == {("conditional",)}


PROGRAM = """\
HloModule jit_step, is_scheduled=true

%add.1 (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%first (x.1: (f32[8])) -> f32[8] {
  %x.1 = (f32[8]{0}) parameter(0)
  %y.1 = f32[8]{0} get-tuple-element(%x.1), index=0
  ROOT %all-reduce.1 = f32[8]{0} all-reduce(%y.1), replica_groups={{0,1}}, to_apply=%add.1
}

%later (x.2: (f32[8])) -> f32[8] {
  %x.2 = (f32[8]{0}) parameter(0)
  ROOT %y.2 = f32[8]{0} get-tuple-element(%x.2), index=0
}

%body.3 (c.3: (s32[], bf16[2,3])) -> (s32[], bf16[2,3]) {
  %c.3 = (s32[], bf16[2,3]{1,0}) parameter(0)
  %i.3 = s32[] get-tuple-element(%c.3), index=0
  %v.3 = bf16[2,3]{1,0:T(8,128)} get-tuple-element(%c.3), index=1
  %start.3 = (bf16[2,3]{1,0}, bf16[2,3]{1,0}) collective-permute-start(%v.3), channel_id=2
  %done.3 = bf16[2,3]{1,0} collective-permute-done(%start.3)
  ROOT %t.3 = (s32[], bf16[2,3]{1,0}) tuple(%i.3, %done.3)
}

%condition.3 (c.4: (s32[], bf16[2,3])) -> pred[] {
  %c.4 = (s32[], bf16[2,3]{1,0}) parameter(0)
  ROOT %p.4 = pred[] constant(false)
}

ENTRY %main (p0: pred[], p1: f32[8], p2: s32[], p3: bf16[2,3]) -> f32[8] {
  %p0 = pred[] parameter(0)
  %p1 = f32[8]{0} parameter(1)
  %p2 = s32[] parameter(2)
  %p3 = bf16[2,3]{1,0} parameter(3)
  %both = (pred[], /*index=1*/s32[]) all-reduce(%p0, /*index=1*/%p2), to_apply=%add.1, metadata={}
  %carry = (s32[], bf16[2,3]{1,0}) tuple(%p2, %p3)
  %loop = (s32[], bf16[2,3]{1,0}) while(%carry), condition=%condition.3, body=%body.3
  %wrapped = (f32[8]{0}) tuple(%p1)
  ROOT %out = f32[8]{0} conditional(%p0, %wrapped, %wrapped), branch_computations={%first, %later}
}
"""


def test_collectives_are_found_in_branches_and_loops():
  assert hlo.collectives(PROGRAM) == [
    ("all-reduce", 5, (), "main"),
    ("collective-permute", 12, ("while",), "body.3"),
    ("all-reduce", 32, ("conditional",), "first"),
  ]
