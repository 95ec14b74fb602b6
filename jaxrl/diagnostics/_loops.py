"""Loops that are XLA's where something is traced, and Python's where nothing is.

Outside `jax.jit` one compiled body is called again and again: on a CPU, XLA runs convolutions
inside its loops many times slower (a Hessian-vector product of `jaxrl.models`' cnn 32 times).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer


def repeat(
  body: Callable[..., Any], steps: int, carry: Any, *operands: Any, compiled: bool = True
) -> Any:
  """`carry` after `carry = body(i, carry, *operands)` for each step; its arrays are donated.

  A body with loops of its own is left uncompiled, so that those are Python's too.
  """
  if _traced((carry, operands)):
    return jax.lax.fori_loop(0, steps, lambda i, c: body(i, c, *operands), carry)
  step = jax.jit(body, donate_argnums=1) if compiled else body
  for i in range(steps):
    carry = step(i, carry, *operands)
  return carry


def each(function: Callable[..., Any], xs: Any, *operands: Any) -> Any:
  """`function(x, *operands)` for each `x` along the first axis of `xs`, stacked."""
  if _traced((xs, operands)):
    return jax.lax.map(lambda x: function(x, *operands), xs)
  results = [
    function(jax.tree.map(lambda leaf, i=i: leaf[i], xs), *operands)
    for i in range(len(jax.tree.leaves(xs)[0]))
  ]
  return jax.tree.map(lambda *leaves: jnp.stack(leaves), *results)


def _traced(tree: Any) -> bool:
  return any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(tree))
