"""Checkpoints come back bit for bit, and damage never passes unnoticed."""

import os
import pathlib
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrl import checkpoint
from jaxrl.checkpoint import CheckpointError, Checkpoints

CONFIG = {"optimizer": "adam(1e-3)", "epochs": 3, "data": {"name": "digits", "sizes": (1, 2)}}


class State(NamedTuple):
  step: jax.Array
  params: Any
  optimizer: Any


def make_state(scale=1.0) -> State:
  params = {
    "dense": {"kernel": scale * jax.random.normal(jax.random.key(0), (40, 30)), "bias": None},
    "half": jnp.full((3,), scale, jnp.bfloat16),
    "nothing": jnp.zeros((0, 4)),
  }
  optimizer = optax.chain(
    optax.masked(optax.adam(1e-3), {"dense": True, "half": False, "nothing": True}),
    optax.set_to_zero(),
  )
  return State(jnp.asarray(5, jnp.int32), params, optimizer.init(params))


def same(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    assert (x.dtype, x.shape, x.sharding) == (y.dtype, y.shape, y.sharding)
    assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


def save(directory, scales: dict[int, float], **options):
  with Checkpoints(directory, CONFIG, **options) as checkpoints:
    for step, scale in scales.items():
      checkpoints.save(step, make_state(scale), {"accuracy": scale})


def restore(directory, config=CONFIG, state=None, **options):
  with Checkpoints(directory, config, **options) as checkpoints:
    return checkpoints.restore_latest(make_state() if state is None else state)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
  """Checkpoints of steps 1 and 2; copy before damaging."""
  directory = tmp_path_factory.mktemp("two")
  save(directory, {1: 1.0, 2: 2.0})
  return directory


@pytest.fixture
def copied(two, tmp_path):
  return pathlib.Path(shutil.copytree(two, tmp_path / "run"))


def test_round_trip_is_bit_identical(two):
  restored = restore(two)
  same(restored.state, make_state(2.0))
  assert (restored.step, restored.metrics, restored.notes) == (2, {"accuracy": 2.0}, ())


def test_round_trip_from_shapes_alone(two):
  same(restore(two, state=jax.eval_shape(make_state)).state, make_state(2.0))


def test_sharding_comes_from_the_abstract_state(tmp_path):
  mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
  rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
  values = {"w": jnp.arange(16.0).reshape(8, 2)}
  sharded = jax.device_put(values, rows)
  with Checkpoints(tmp_path, {}) as checkpoints:
    checkpoints.save(1, sharded)
    same(checkpoints.restore_latest(sharded).state, sharded)
    same(checkpoints.restore_latest(values).state, values)


def test_nothing_saved_is_none(tmp_path):
  with Checkpoints(tmp_path / "new", CONFIG) as checkpoints:
    assert checkpoints.restore_latest(make_state()) is None
    assert checkpoints.restore_best(make_state()) is None


def test_extra_values_come_back(tmp_path):
  with Checkpoints(tmp_path, {}) as checkpoints:
    checkpoints.save(3, {"w": jnp.ones(2)}, extra={"seconds": 1.5, "names": ["a"]})
    assert checkpoints.restore_latest({"w": jnp.ones(2)}).extra == {"seconds": 1.5, "names": ["a"]}


def test_a_saved_step_is_left_as_it_is(copied):
  save(copied, {2: 7.0})
  same(restore(copied).state, make_state(2.0))


def test_donation_right_after_save_does_not_reach_the_checkpoint(tmp_path):
  step = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)
  state = step([jnp.zeros((300, 300)) for _ in range(10)])
  with Checkpoints(tmp_path, {}) as checkpoints:
    for number in range(3):
      before = float(state[0][0, 0])
      checkpoints.save(number, state)
      for _ in range(5):
        state = step(state)
      jax.block_until_ready(state)
      restored = checkpoints.restore_latest(state).state
      assert all((np.asarray(leaf) == before).all() for leaf in restored)


def test_keeps_the_latest_and_the_best(tmp_path):
  scales = {1: 0.1, 2: 0.9, 3: 0.3, 4: float("nan"), 5: 0.5, 6: 0.4}
  with Checkpoints(tmp_path, {}, keep=2, best_metric="accuracy") as checkpoints:
    for step, scale in scales.items():
      checkpoints.save(step, {"w": jnp.full(2, scale)}, {"accuracy": scale})
    checkpoints.wait()
    assert checkpoints.steps() == [2, 5, 6]
    assert checkpoints.restore_best({"w": jnp.ones(2)}).step == 2
  with Checkpoints(tmp_path, {}, keep=2, best_metric="accuracy", best_mode="min") as checkpoints:
    assert checkpoints.restore_best({"w": jnp.ones(2)}).step == 6
    checkpoints.save(7, {"w": jnp.ones(2)})
    checkpoints.wait()
    assert checkpoints.steps() == [6, 7]


def test_ties_of_the_best_go_to_the_earliest(tmp_path):
  with Checkpoints(tmp_path, {}, best_metric="accuracy") as checkpoints:
    for step in (1, 2):
      checkpoints.save(step, {"w": jnp.ones(2)}, {"accuracy": jnp.asarray(0.5)})
    assert checkpoints.restore_best({"w": jnp.ones(2)}).step == 1


def test_another_configuration_is_refused_with_what_differs(two):
  other = {**CONFIG, "optimizer": "sgd(0.1)", "data": {"name": "mnist", "sizes": [1, 2]}, "new": 1}
  with pytest.raises(CheckpointError) as error:
    restore(two, other)
  text = str(error.value)
  assert "optimizer: saved 'adam(1e-3)', now 'sgd(0.1)'" in text
  assert "data.name: saved 'digits', now 'mnist'" in text
  assert "new: saved nothing, now 1" in text
  assert "sizes" not in text and "epochs" not in text


def test_ignored_fields_may_differ(two):
  other = {**CONFIG, "epochs": 9, "data": {"name": "mnist", "sizes": (1, 2)}}
  assert restore(two, other, ignore=["epochs", "data.name"]).step == 2
  assert restore(two, other, ignore=["epochs", "data"]).step == 2
  with pytest.raises(CheckpointError, match=r"data\.name"):
    restore(two, other, ignore=["epochs"])


def test_another_state_is_refused_with_the_leaf(two):
  state = make_state()
  wider = state._replace(params={**state.params, "half": jnp.ones(4, jnp.bfloat16)})
  with pytest.raises(
    CheckpointError, match=r"params/half: saved 'bfloat16\[3\]', now 'bfloat16\[4"
  ):
    restore(two, state=wider)
  more = state._replace(params={**state.params, "more": jnp.ones(1)})
  with pytest.raises(CheckpointError, match=r"params/more: saved nothing, now 'float32\[1\]'"):
    restore(two, state=more)
  with pytest.raises(CheckpointError, match=r"optimizer/0/\S+: saved '\S+', now nothing"):
    restore(two, state=state._replace(optimizer=()))


def test_python_numbers_in_the_state_are_refused(tmp_path):
  with Checkpoints(tmp_path, {}) as checkpoints, pytest.raises(TypeError, match="a/b is 3"):
    checkpoints.save(1, {"a": {"b": 3}})


def flip(file):
  content = bytearray(file.read_bytes())
  content[len(content) // 2] ^= 0x10
  file.write_bytes(content)


DAMAGES = {
  "deleted": lambda file: file.unlink(),
  "cut": lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
  "flipped": flip,
  "emptied": lambda file: file.write_bytes(b""),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_to_any_file_is_harmless_or_falls_back(two, tmp_path, damage, capfd):
  files = [path.relative_to(two) for path in (two / "2").rglob("*") if path.is_file()]
  data = max(files, key=lambda file: (two / file).stat().st_size)
  fallen_back = set()
  for number, file in enumerate(files):
    run = pathlib.Path(shutil.copytree(two, tmp_path / str(number)))
    DAMAGES[damage](run / file)
    restored = restore(run)
    same(restored.state, make_state(float(restored.step)))
    if restored.step == 1:
      fallen_back.add(file)
      (note,) = restored.notes
      assert "step 2 is damaged" in note and "took step 1" in note and "\n" not in note
  assert data in fallen_back and len(fallen_back) >= len(files) - 2
  assert capfd.readouterr() == ("", "")


def test_after_a_fallback_the_step_is_saved_again(copied):
  flip(copied / "2" / "checksums.json")
  with Checkpoints(copied, CONFIG) as checkpoints:
    assert checkpoints.restore_latest(make_state()).step == 1
    checkpoints.save(2, make_state(3.0))
  same(restore(copied).state, make_state(3.0))
  assert (copied / "damaged-2").is_dir()


def test_restore_best_falls_back_too(copied):
  shutil.rmtree(copied / "2" / "arrays" / "d")
  with Checkpoints(copied, CONFIG, best_metric="accuracy") as checkpoints:
    restored = checkpoints.restore_best(make_state())
  assert restored.step == 1 and len(restored.notes) == 1


def test_all_damaged_is_an_error_each_time(copied):
  for step in ("1", "2"):
    shutil.rmtree(copied / step)
    (copied / step).mkdir()
  for _ in range(2):
    with pytest.raises(CheckpointError, match=r"every checkpoint .*step 2: .*; step 1: "):
      restore(copied)


def test_unfinished_folders_are_swept_away(copied):
  unfinished = copied / "3.orbax-checkpoint-tmp"
  shutil.copytree(copied / "2", unfinished)
  assert restore(copied).step == 2
  assert not unfinished.exists()


def test_kill_9_while_saving_leaves_a_good_checkpoint(tmp_path):
  script = textwrap.dedent("""
    import sys, jax.numpy as jnp
    from jaxrl.checkpoint import Checkpoints
    checkpoints = Checkpoints(sys.argv[1], {})
    for step in range(1, 10**6):
      checkpoints.save(step, {"w": jnp.full((500, 500), step, jnp.float32)})
      print(step, flush=True)
  """)
  command = [sys.executable, "-c", script, str(tmp_path)]
  child = subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ})
  assert child.stdout is not None
  while int(child.stdout.readline()) < 4:
    pass
  child.kill()
  child.communicate()
  with Checkpoints(tmp_path, {}) as checkpoints:
    restored = checkpoints.restore_latest({"w": jnp.zeros((500, 500))})
  assert restored.step >= 3 and restored.notes == ()
  assert (np.asarray(restored.state["w"]) == restored.step).all()


def test_saving_says_nothing(tmp_path, capfd):
  save(tmp_path, {1: 1.0, 2: 2.0})
  assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
  ("options", "message"),
  [({"keep": 0}, "keep must be"), ({"best_mode": "most"}, "best_mode must be one of")],
)
def test_bad_arguments(tmp_path, options, message):
  with pytest.raises(ValueError, match=message):
    Checkpoints(tmp_path, {}, **options)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_is_a_request(number):
  before = signal.getsignal(number)
  with checkpoint.stop_on_signals() as stop:
    assert not stop.requested
    signal.raise_signal(number)
    assert stop.requested and stop.signal == number.name
    assert signal.getsignal(number) == before
  assert signal.getsignal(number) == before


def test_a_second_interrupt_interrupts():
  with checkpoint.stop_on_signals():
    signal.raise_signal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
      signal.raise_signal(signal.SIGINT)


def test_outside_the_main_thread_nothing_is_requested():
  seen = []

  def work():
    with checkpoint.stop_on_signals() as stop:
      seen.append(stop.requested)

  thread = threading.Thread(target=work)
  thread.start()
  thread.join()
  assert seen == [False]
