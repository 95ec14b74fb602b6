"""Peers that can't live in our environment: worker processes that run a round when told to."""

import contextlib
import os
import pathlib
import subprocess
import tempfile
from typing import Any

from ._measure import Program

ROOT = pathlib.Path(__file__).parents[2]
FOLDER = pathlib.Path(__file__).parent / "peers"


class Peers:
  """Starts the files of scripts/bench/peers by another environment's Python.

  The protocol is one line each way. A worker that is ready says `ready`, and what it runs
  on; to `run` it answers with the seconds a step of one round. It ends with its input.

  Args:
    python: path of the interpreter; `None` if there is none, and all peers are missing.
    folder: of the files.

  Raises:
    ValueError: `python` is no file.
  """

  def __init__(self, python: pathlib.Path | None, folder: pathlib.Path = FOLDER):
    if python is not None and not python.is_file():
      raise ValueError(f"peers must be the path of a Python, got {str(python)!r}")
    self._python = python
    self._folder = folder
    self._workers: list[_Worker] = []

  def __enter__(self) -> "Peers":
    return self

  def __exit__(self, *_exception: object) -> None:
    for worker in self._workers:
      worker.close()

  def program(self, name: str, *arguments: str) -> Program:
    """The peer of this file name, with these arguments; its note says why it is missing."""
    if self._python is None:
      return Program(None, "missing: no --peers")
    worker = _Worker([str(self._python), str(self._folder / f"{name}.py"), *arguments])
    self._workers.append(worker)
    try:
      word, _, note = worker.answer().partition(" ")
    except EOFError as error:
      return Program(None, f"missing: {error}")
    if word != "ready":
      raise ValueError(f"peer {name} must say 'ready' first, got {word!r}")
    return Program(lambda: float(worker.ask("run")), note)


class _Worker:
  """A process that answers line by line."""

  def __init__(self, command: list[str]):
    self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  (until close)
    self._process: subprocess.Popen[Any] = subprocess.Popen(
      command,
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=self._errors,
      text=True,
      env={**os.environ, "PYTHONPATH": str(ROOT)},
    )

  def ask(self, line: str) -> str:
    """Sends a line and returns the one that answers it."""
    assert self._process.stdin is not None
    # A pipe that is broken belongs to a process that has ended, as `answer` will find.
    with contextlib.suppress(BrokenPipeError):
      self._process.stdin.write(f"{line}\n")
      self._process.stdin.flush()
    return self.answer()

  def answer(self) -> str:
    """The next line; EOFError with the last line of its errors if the process has ended."""
    assert self._process.stdout is not None
    line = self._process.stdout.readline()
    if not line:
      self._process.wait()
      self._errors.seek(0)
      said = self._errors.read().strip().splitlines()
      raise EOFError(said[-1] if said else f"ended with code {self._process.returncode}")
    return line.strip()

  def close(self) -> None:
    """Ends the process by ending its input."""
    self._process.communicate()
    self._errors.close()
