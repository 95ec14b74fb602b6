"""Several processes that train together, on JAX's distributed runtime.

Process 0 writes whatever is not a checkpoint; all of them save and restore. When one is
gone, the others end within `LOSS_SECONDS`, each with one line that says so.
"""

import atexit
import functools
import glob
import importlib.util
import json
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from . import _witness

HEARTBEAT_SECONDS = 20
"""A process that is silent for so long is gone."""

LOSS_SECONDS = 30
"""Within which the others have ended."""

_LOSS = ("gloo", "nccl", "coordination", "heartbeat", "unavailable", "connection", "socket")


def start(
  coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None
) -> None:
  """Joins this process to the others, before anything touches a device.

  With no arguments it joins only where Slurm, Open MPI, Kubernetes (an indexed job, with
  `jax[k8s]`) or a TPU pod runs several processes; elsewhere it does nothing.

  Args:
    coordinator: `HOST:PORT` at which process 0 listens.
    num_processes: how many there are.
    process_id: the number of this one, from 0.

  Raises:
    ValueError: only a part of the three is given, or one of them cannot be.
  """
  given = {"coordinator": coordinator, "num_processes": num_processes, "process_id": process_id}
  missing = [f"--{name.replace('_', '-')}" for name, value in given.items() if value is None]
  if len(missing) == len(given):
    if not in_cluster(os.environ):
      return
  elif missing:
    raise ValueError(f"several processes need {' and '.join(missing)} too")
  else:
    _check(coordinator, num_processes, process_id)
  # SIGTERM is agreed on by `on_any`, which also works for a run that was resumed.
  jax.config.update("jax_enable_preemption_service", False)
  _place_witness("this process" if process_id is None else f"process {process_id}")
  jax.distributed.initialize(
    coordinator,
    num_processes,
    process_id,
    heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
    shutdown_timeout_seconds=HEARTBEAT_SECONDS,
  )


def in_cluster(environment: Mapping[str, str]) -> bool:
  """Whether the environment is that of one of several processes which JAX can connect."""

  def several(*names):
    return all(environment.get(name, "").isdecimal() for name in names) and all(
      int(environment[name]) > 1 for name in names
    )

  slurm = several("SLURM_NTASKS", "SLURM_STEP_NUM_TASKS") and "SLURM_PROCID" in environment
  open_mpi = several("OMPI_COMM_WORLD_SIZE") and "OMPI_MCA_orte_hnp_uri" in environment
  kubernetes = {"KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX"} <= set(environment)
  return (
    slurm
    or open_mpi
    or (kubernetes and importlib.util.find_spec("kubernetes") is not None)
    or _on_tpu(environment)
  )


def is_first() -> bool:
  """Whether this process is the one that writes."""
  return jax.process_index() == 0


def part() -> tuple[int, int]:
  """Which part of each batch this process loads, of how many."""
  return jax.process_index(), jax.process_count()


def of_first(compute: Callable[[], Any]) -> Any:
  """What `compute` gives in process 0, in every process: JSON-able; they wait for it."""
  if jax.process_count() == 1:
    return compute()
  text = json.dumps(compute()).encode() if is_first() else b""
  length = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
  characters = np.zeros(length, np.uint8)
  if is_first():
    characters[:] = np.frombuffer(text, np.uint8)
  return json.loads(np.asarray(multihost_utils.broadcast_one_to_all(characters)).tobytes())


def on_any(flag: bool) -> Any:
  """Whether `flag` is set in any process, the same in all; its value need not be there yet.

  A bool with one process; otherwise an array, so that nobody waits before `bool` of it.
  """
  if jax.process_count() == 1:
    return flag
  sharding, largest = _largest()
  flags = np.full(jax.local_device_count(), flag, np.int32)
  return largest(jax.make_array_from_process_local_data(sharding, flags))


def leave_if_lost(error: Exception) -> None:
  """Ends this process if the error comes from one that is gone; otherwise returns.

  The runtime ends it, and then the witness knows who is gone; this waits for it.
  """
  text = " ".join(str(error).split())
  if jax.process_count() > 1 and any(word in text.lower() for word in _LOSS):
    _end_with_the_others(text)


def _end_with_the_others(text: str) -> NoReturn:
  os.write(2, f"distributed service: {text}\n".encode())
  time.sleep(HEARTBEAT_SECONDS + 2)
  os._exit(1)


def _check(coordinator: Any, num_processes: Any, process_id: Any) -> None:
  host, _, port = coordinator.rpartition(":")
  if not host or not port.isdecimal():
    raise ValueError(f"coordinator must read like HOST:PORT, got {coordinator!r}")
  if num_processes < 1:
    raise ValueError(f"num_processes must be at least 1, got {num_processes}")
  if not 0 <= process_id < num_processes:
    raise ValueError(
      f"process_id must be one of 0 to {num_processes - 1}, the num_processes, got {process_id}"
    )


def _on_tpu(environment: Mapping[str, str]) -> bool:
  chips = glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*")
  wanted = environment.get("JAX_PLATFORMS", "tpu")
  return bool(chips) and "tpu" in wanted and importlib.util.find_spec("libtpu") is not None


@functools.cache
def _largest() -> tuple[NamedSharding, Callable[[jax.Array], jax.Array]]:
  mesh = Mesh(np.array(jax.devices()), ("devices",))
  everywhere = NamedSharding(mesh, PartitionSpec())
  return NamedSharding(mesh, PartitionSpec("devices")), jax.jit(jnp.max, out_shardings=everywhere)


def _place_witness(name: str) -> None:
  """Leads file descriptor 2 to a witness; Python's own output stays where it is.

  Descriptor 1 leads nowhere: all that comes there is Gloo's report of each connection.
  """
  sys.stdout.flush()
  sys.stderr.flush()
  sys.stdout = os.fdopen(os.dup(1), "w", buffering=1)
  sys.stderr = os.fdopen(os.dup(2), "w", buffering=1)
  witness = subprocess.Popen(
    [sys.executable, "-I", str(pathlib.Path(_witness.__file__)), name],
    stdin=subprocess.PIPE,
    stdout=subprocess.DEVNULL,
    start_new_session=True,
  )
  assert witness.stdin is not None
  os.dup2(witness.stdin.fileno(), 2)
  witness.stdin.close()
  with open(os.devnull, "w") as nowhere:
    os.dup2(nowhere.fileno(), 1)
  atexit.register(_say_goodbye, witness)


def _say_goodbye(witness: subprocess.Popen) -> None:
  """The end of a process that ends as it should, once the others are there too."""
  jax.distributed.shutdown()
  os.write(2, _witness.GOODBYE)
  os.dup2(sys.stdout.fileno(), 1)
  os.dup2(sys.stderr.fileno(), 2)
  witness.wait()
