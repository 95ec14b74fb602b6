"""Twenty-four steps of selective gradient masking, AdamW behind it, of a GPT-Neo block's MLP.

From github.com/safety-research/selective-gradient-masking, commit 476632d63bd5, the folder
src/sgtm/model: forward passes by mode, masking and ablation are the official ones.
"""

import numpy as np
import torch
from _official import prepare, save

STEPS, LEARNING_RATE, DECAY, BETAS = 24, 0.01, 0.1, (0.9, 0.95)
SIZE, FEATURES, HIDDEN, FORGET = 6, 4, 10, 3
MODES = ["default", "forget", "retain"]


def values_of(model):
  values = {
    "up": model.c_fc.weight.T,
    "up_bias": model.c_fc.bias,
    "down": model.c_proj.weight.T,
    "down_bias": model.c_proj.bias,
  }
  return {name: value.detach().clone() for name, value in values.items()}


def main():
  prepare("src")
  from sgtm.model.parameter_masking import GPTNeoMLPParameterMasking
  from transformers import GPTNeoConfig

  torch.manual_seed(0)
  config = GPTNeoConfig(
    hidden_size=FEATURES,
    activation_function="gelu",
    resid_dropout=0.0,
    retain_mlp_dim=HIDDEN - FORGET,
    split_masked_weights=False,
  )
  model = GPTNeoMLPParameterMasking(HIDDEN, config)
  start = values_of(model)
  rng = np.random.default_rng(0)
  inputs = torch.tensor(rng.normal(size=(STEPS, SIZE, FEATURES)))
  targets = torch.tensor(rng.normal(size=(STEPS, SIZE, FEATURES)))
  modes = rng.permutation(np.arange(STEPS) % len(MODES))
  optimizer = torch.optim.AdamW(
    model.parameters(), lr=LEARNING_RATE, weight_decay=DECAY, betas=BETAS
  )
  for x, y, mode in zip(inputs, targets, modes, strict=True):
    optimizer.zero_grad()
    torch.mean((model(x[None], MODES[mode])[0] - y) ** 2).backward()
    model.adjust_gradients(MODES[mode])
    optimizer.step()
  end = values_of(model)
  retained = model(inputs[0][None], "retain")[0].detach()
  model.ablate()
  hyper = {"learning_rate": LEARNING_RATE, "decay": DECAY, "betas": BETAS, "forget": FORGET}
  data = {"inputs": inputs, "targets": targets, "modes": torch.tensor(modes), "start": start}
  answers = {"end": end, "ablated": values_of(model), "retained": retained}
  save(__file__, {**hyper, **data, **answers})


main()
