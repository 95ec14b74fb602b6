"""The README's Python runs and says the truth; its commands name things that exist."""

import re
import shlex
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import tyro

from jaxrl import spec
from scripts import train

README = (Path(__file__).parent.parent / "README.md").read_text()
NAMES = {"num_examples": 1200, "num_classes": 10, "num_groups": 2, "steps": 360, "epochs": 20}


def blocks(language):
  return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def test_both_versions_of_the_worked_page_take_the_same_steps():
  page = {}
  for block in blocks("python"):
    exec(block, page)
  parts, rng = page["parts"], np.random.default_rng(0)
  state = jax.jit(parts.init)(0)
  by_hand = state.params, page["adamw"].init(state.params), jnp.full(2, 0.5)
  for _ in range(20):
    batch = {
      "inputs": rng.normal(size=(8, 4)).astype(np.float32),
      "labels": rng.integers(3, size=8),
      "group": rng.integers(2, size=8),
    }
    by_hand = page["step_by_hand"](by_hand, batch)
    state, metrics = page["step"](state, {**batch, "mask": np.ones(8, np.float32)})
  chex.assert_trees_all_close(by_hand[0], state.params, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(by_hand[2][1], metrics["group_dro/q_1"], rtol=1e-5)


def test_every_training_command_is_understood():
  text = "".join(blocks("bash")).replace("\\\n", "")
  commands = [shlex.split(line) for line in text.splitlines() if "scripts.train" in line]
  assert len(commands) >= 6
  for _python, _m, _program, *arguments in commands:
    config = tyro.cli(train.Config, args=arguments)
    spec.objective(config.objective, **NAMES)
    spec.optimizer(config.optimizer, **NAMES)


def test_every_make_target_exists():
  makefile = (Path(__file__).parent.parent / "Makefile").read_text()
  for target in re.findall(r"^make (\w+)", "".join(blocks("bash")), re.MULTILINE):
    assert re.search(rf"^{target}:", makefile, re.MULTILINE)


def test_links_lead_to_files():
  for name in re.findall(r"\]\((\w[\w./]*)\)", README):
    assert (Path(__file__).parent.parent / name).exists(), name
