"""Beside each process of a run with several: says in one line why that process ended early.

The runtime of a process aborts as soon as another one is gone, with pages of its own on file
descriptor 2. That descriptor leads here. A process that ends well says goodbye; otherwise
this program knows, from what the runtime said or from its silence, who is gone.

Run as a script, by nothing but the standard library: `python _witness.py NAME`.
"""

import re
import signal
import sys

GOODBYE = b"goodbye\n"

_NEW_LINE = re.compile(rb"[IWEF]\d{4} ")
_ABOUT_PROCESSES = re.compile(
  rb"coordination_service|preemption_sync|distributed service|[Gg]loo|\*\*\* Check failure"
)
_SILENT = re.compile(rb"heartbeats\):?\s*((?:[^\s,]*\d[\s,]+)+)")
_FIRST_IS_GONE = re.compile(rb"leader task|Failed to send RPC to coordination service")


def who_is_gone(said: bytes, name: str) -> str:
  """The end of a process in words, from what its runtime said about processes.

  Gloo, which connects CPUs, may abort before the runtime has found out who is gone.
  """
  if silent := _SILENT.search(said):
    numbers = re.findall(rb"(\d+)(?=[\s,])", silent[1])
    return f"process {', '.join(sorted({n.decode() for n in numbers}))} is gone"
  if _FIRST_IS_GONE.search(said):
    return "process 0 is gone"
  return "the connection to another process broke" if said else f"{name} was killed"


def main() -> None:
  """Passes on what comes, except what the runtime says about other processes."""
  for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
  said, about_processes = b"", False
  for line in sys.stdin.buffer:
    if line == GOODBYE:
      return
    if _ABOUT_PROCESSES.search(line):
      about_processes = True
    elif _NEW_LINE.match(line):
      about_processes = False
    if about_processes:
      said += line
    else:
      sys.stderr.buffer.write(line)
      sys.stderr.buffer.flush()
  print(
    f"error: {who_is_gone(said, sys.argv[1])}; the same command, in all processes, goes on from "
    "the last checkpoint",
    file=sys.stderr,
  )


if __name__ == "__main__":
  main()
