"""Twenty-four steps of Fisher SAM, Adam behind it, the mask chosen anew every five steps.

From github.com/WHU-ZQH/FSAM4PLM, commit 44e250328996, fairseq-FSAM/optim/samsgd.py, class
SAM_Mask, of which two things are left out: that choosing a mask deletes the gradient, so that
there is nothing to perturb by, and its second step, which asks for a copy of the parameters
that was never made. The perturbation is taken back as the file's other masked classes do.
"""

import importlib.util
import sys
import types
from pathlib import Path

import numpy as np
import torch
from _network import Network, batches, run
from _official import prepare, save

RHO, KEEP, EVERY, LEARNING_RATE = 0.3, 0.3, 5, 0.01


class Anything(types.ModuleType):
  """A module that has every name, each a class or decorator that does nothing."""

  __path__ = ()

  def __getattr__(self, name):
    if name.startswith("__"):
      raise AttributeError(name)
    return type(name, (), {"__new__": lambda cls, *args, **kwargs: lambda decorated: decorated})


def official():
  """The class SAM_Mask, without the rest of fairseq."""
  for name in ("fairseq", "fairseq.dataclass", "fairseq.optim", "fairseq.optim.fused_adam"):
    sys.modules[name] = Anything(name)
  sys.modules["omegaconf"] = Anything("omegaconf")
  sys.modules["torch.optim._multi_tensor"] = Anything("multi_tensor")
  folder = Path(sys.argv[1], "fairseq-FSAM", "optim")
  package = Anything("optim")
  package.__path__ = [str(folder)]
  sys.modules["optim"] = package
  found = importlib.util.spec_from_file_location("optim.samsgd", folder / "samsgd.py")
  module = importlib.util.module_from_spec(found)
  sys.modules["optim.samsgd"] = module
  found.loader.exec_module(module)
  return module.SAM_Mask


def main():
  prepare()
  torch.nn.Module.cuda = lambda module: module
  network, data = Network(np.random.default_rng(1)), batches(np.random.default_rng(0))
  optimizer = official()(
    network.parameters(), torch.optim.Adam, network, keep_ratio=KEEP, rho=RHO, lr=LEARNING_RATE
  )
  optimizer.init_mask()
  network.zero_grad = lambda: None  # set_fisher_mask deletes the gradient by it
  count = 0

  def step(loss):
    nonlocal count
    value = loss()
    if count % EVERY == 0:
      optimizer.set_fisher_mask(loss)
    count += 1
    optimizer.first_step(zero_grad=True)
    loss()
    with torch.no_grad():
      for param in network.parameters():
        param.sub_(optimizer.state[param]["e_w"])
    optimizer.base_optimizer.step()
    optimizer.zero_grad()
    return value

  hyper = {"rho": RHO, "keep": KEEP, "every": EVERY, "learning_rate": LEARNING_RATE}
  save(__file__, {**hyper, "inputs": data[0], "labels": data[1], **run(network, data, step)})


main()
