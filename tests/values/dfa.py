"""Twenty-five steps of a small network by the official direct feedback alignment.

From https://github.com/lightonai/principled-dfa-training at commit 5a38665, whose file
`dfatools/dfatorch.py` it runs: `python tests/values/dfa.py CHECKOUT`. Two hidden layers of
tanh, the second after LayerNorm, by SGD on one batch; then how the errors align.
"""

from collections import OrderedDict

import torch
from _official import prepare, save

prepare()
from dfatools import dfatorch  # noqa: E402  (the checkout is on the path now)

STEPS, LEARNING_RATE = 25, 0.02
SIZE, WIDTHS = 10, (5, 7, 4, 3)


def layers():
  first, second, third, last = WIDTHS
  return OrderedDict(
    lin1=torch.nn.Linear(first, second),
    act1=torch.nn.Tanh(),
    lin2=torch.nn.Linear(second, third),
    norm2=torch.nn.LayerNorm(third, eps=1e-6, elementwise_affine=False),
    act2=torch.nn.Tanh(),
    lin3=torch.nn.Linear(third, last),
  )


def tree(model):
  named = dict(model.named_parameters())
  return [
    {
      "kernel": named[f"lin{i}.weight"].detach().T.clone(),
      "bias": named[f"lin{i}.bias"].detach().clone(),
    }
    for i in (1, 2, 3)
  ]


def main():
  torch.manual_seed(0)
  model = dfatorch.AsymmetricSequential("cpu", dfatorch.build_dfa_from_bp(layers()))
  inputs, labels = torch.randn(SIZE, WIDTHS[0]), torch.randint(WIDTHS[-1], (SIZE,))
  model.build_feedback(inputs)
  optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)

  def error_of(outputs):
    return torch.softmax(outputs.detach(), dim=1) - torch.eye(WIDTHS[-1])[labels]

  start, losses = tree(model), []
  for _ in range(STEPS):
    outputs = model(inputs)
    loss = torch.nn.functional.cross_entropy(outputs, labels)
    optimizer.zero_grad()
    model.backward(error_of(outputs))
    loss.backward()
    optimizer.step()
    losses.append(loss.item())

  # The errors at the ends of the hidden layers, as both procedures have them.
  model.backward(error_of(model(inputs)))
  by_feedback = [module.rp for module in model.asym_locations.values()]
  plain = torch.nn.Sequential(layers())
  plain.load_state_dict(model.state_dict())
  x, hidden = inputs, []
  for name, layer in plain.named_children():
    x = layer(x)
    if name.startswith("act"):
      hidden.append(x)
  true = torch.autograd.grad(torch.nn.functional.cross_entropy(x, labels), hidden)
  cosine = torch.nn.CosineSimilarity(dim=1)
  cosines = torch.stack([cosine(t, f) for t, f in zip(true, by_feedback, strict=True)])
  values = {
    "learning_rate": LEARNING_RATE,
    "inputs": inputs,
    "labels": labels,
    "random_matrix": model.random_matrix,
    "start": start,
    "losses": losses,
    "end": tree(model),
    "cosines": cosines,
  }
  save(__file__, values)


main()
