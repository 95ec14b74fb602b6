"""Twenty-five steps of UDIM on a small classifier, and the inputs that each step moved to.

From github.com/aailabkaist/UDIM, commit 808f1b228b4a, UDIM_main/domainbed/iada/iada_final.py.
Gradients of single examples come from autograd, in the place of BackPACK.
"""

import sys
import types
from unittest import mock

import numpy as np
import torch
from _official import prepare, save

STEPS, SIZE, FEATURES, HIDDEN, CLASSES = 25, 8, 5, 6, 3
RHO, STEP, LAM, LEARNING_RATE = 0.05, 0.7, 0.5, 0.3


def main():
  prepare("UDIM_main/domainbed")
  for name in ("torchvision", "torchvision.utils", "backpack", "backpack.extensions"):
    sys.modules[name] = mock.MagicMock()
  sys.modules["backpack"].extend = lambda module: module
  from iada.iada_final import IADA_FINAL

  IADA_FINAL._get_grads = gradients_of_examples

  torch.manual_seed(0)
  rng = np.random.default_rng(0)
  inputs = torch.tensor(rng.normal(size=(SIZE, FEATURES)))
  labels = torch.tensor(rng.integers(CLASSES, size=SIZE))
  head = torch.nn.Linear(HIDDEN, CLASSES)
  model = torch.nn.Sequential(torch.nn.Linear(FEATURES, HIDDEN), torch.nn.Tanh(), head)
  start = weights(model)
  optimizer = IADA_FINAL(
    params=model.parameters(),
    base_optimizer=torch.optim.SGD(model.parameters(), lr=LEARNING_RATE),
    model=model,
    rho_scheduler=types.SimpleNamespace(step=lambda: RHO),
    hparams={},
    args=types.SimpleNamespace(
      advstyle=False, syn_lr=STEP, worst_weight=LAM, domain_wise_inconsistency=False
    ),
    classifier=head,
  )
  losses, penalties, moved = [], [], []
  for _ in range(STEPS):
    copy = inputs.clone().requires_grad_()
    optimizer.set_closure(torch.nn.functional.cross_entropy, inputs, labels, copy)
    outputs, _, penalty = optimizer.step(cur_step=1)
    losses.append(torch.nn.functional.cross_entropy(outputs, labels).item())
    penalties.append(penalty.item())
    moved.append(optimizer.syn_inputs.detach().clone())
  given = {"inputs": inputs, "labels": labels, "start": start}
  hyper = {"rho": RHO, "rho_x": STEP, "lam": LAM, "learning_rate": LEARNING_RATE}
  shown = {"losses": losses, "penalties": penalties, "moved": moved[:3]}
  save(__file__, {**given, **hyper, **shown, "end": weights(model)})


def gradients_of_examples(optimizer, logits, labels):
  """Gradients `[B, size]` of the head's parameters, and their squared norms."""
  names, params = zip(*optimizer.classifier.named_parameters(), strict=True)
  losses = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
  rows = [torch.autograd.grad(loss, params, create_graph=True) for loss in losses]
  columns = [torch.stack([g.reshape(-1) for g in column]) for column in zip(*rows, strict=True)]
  squares = [(column**2).sum(dim=1) for column in columns]
  return dict(zip(names, columns, strict=True)), dict(zip(names, squares, strict=True))


def weights(model):
  first, _, head = model
  return {
    "first": first.weight.detach().T.clone(),
    "bias": first.bias.detach().clone(),
    "second": head.weight.detach().T.clone(),
    "offset": head.bias.detach().clone(),
  }


main()
