"""Twenty steps of online group DRO: losses, gradients with respect to the logits, and q.

From github.com/kohpangwei/group_DRO, commit cbbc1c5b0684, loss.py, which computes in float32.
"""

import types

import numpy as np
import torch
from _official import prepare, save

NUM_GROUPS, COUNTS = 3, [100, 25, 400]


def main():
  prepare()
  torch.set_default_dtype(torch.float32)
  from loss import LossComputer

  runs = [
    run(LossComputer, eta=0.1, adjustment=0.0, normalize=False),
    run(LossComputer, eta=0.5, adjustment=2.0, normalize=False),
    run(LossComputer, eta=1.0, adjustment=1.0, normalize=True),
  ]
  save(__file__, {"num_groups": NUM_GROUPS, "group_counts": COUNTS, "runs": runs})


def run(computer, *, eta, adjustment, normalize):
  dataset = types.SimpleNamespace(
    n_groups=NUM_GROUPS, group_counts=lambda: torch.tensor(COUNTS).float(), group_str=str
  )
  official = computer(
    torch.nn.CrossEntropyLoss(reduction="none"),
    is_robust=True,
    dataset=dataset,
    alpha=0.2,
    adj=np.full(NUM_GROUPS, adjustment),
    step_size=eta,
    normalize_loss=normalize,
  )
  rng = np.random.default_rng(2)
  steps = [step(official, rng, number) for number in range(20)]
  return {"eta": eta, "adjustment": adjustment, "normalize": normalize, "steps": steps}


def step(official, rng, number):
  """One step; every third one lacks the last group."""
  logits = torch.tensor(2 * rng.normal(size=(6, 2)), dtype=torch.float32, requires_grad=True)
  labels = torch.tensor(rng.integers(2, size=6))
  group = torch.tensor(rng.integers(NUM_GROUPS - (number % 3 == 2), size=6))
  value = official.loss(logits, labels, group, is_training=True)
  value.backward()
  return {
    "logits": logits.detach(),
    "labels": labels,
    "group": group,
    "value": value.item(),
    "gradient": logits.grad,
    "q": official.adv_probs.clone(),
  }


main()
