"""The MLP of the suites in PyTorch: `torch_mlp.py adamw|sam cpu|gpu`.

Needs torch, and pytorch_optimizer for SAM: an environment from requirements-oracles.txt.
"""

import sys

import torch  # pyright: ignore[reportMissingImports]

from scripts.bench import _problem
from scripts.bench.peers import _worker


def adamw(model, loss):
  """A step of AdamW."""
  optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=1e-4)

  def step():
    optimizer.zero_grad()
    loss().backward()
    optimizer.step()

  return step


def sam(model, loss):
  """A step of SAM before SGD, in the two steps that its documentation shows."""
  from pytorch_optimizer import SAM  # pyright: ignore[reportMissingImports]

  optimizer = SAM(model.parameters(), torch.optim.SGD, lr=0.1, rho=0.05)

  def step():
    loss().backward()
    optimizer.first_step(zero_grad=True)
    loss().backward()
    optimizer.second_step(zero_grad=True)

  return step


def main():
  """Serves the step that the command line names."""
  method, platform = sys.argv[1:]
  device = torch.device("cuda" if platform == "gpu" else platform)
  batch, layers = _problem.batch(), []
  width = batch["inputs"][0].size
  for following in _problem.WIDTHS:
    layers += [torch.nn.Linear(width, following), torch.nn.ReLU()]
    width = following
  model = torch.nn.Sequential(torch.nn.Flatten(), *layers, torch.nn.Linear(width, 10)).to(device)
  inputs = torch.from_numpy(batch["inputs"]).to(device)
  labels = torch.from_numpy(batch["labels"]).long().to(device)

  def loss():
    return torch.nn.functional.cross_entropy(model(inputs), labels)

  step = {"adamw": adamw, "sam": sam}[method](model, loss)
  finish = torch.cuda.synchronize if device.type == "cuda" else lambda: None
  about = f"torch {torch.__version__}, {device.type}, {torch.get_num_threads()} threads"
  _worker.serve(about, step, finish, _problem.STEPS)


if __name__ == "__main__":
  main()
