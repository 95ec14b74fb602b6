"""Quantised training by the official code of StatsQ: StatsQ and CGA, LSQ and its tracker, QK.

From https://github.com/nbasyl/OFQ at commit 7ed37d1: `python tests/values/statsq.py CHECKOUT`.
Its quantisers (src/quantization/quantizer), the mask of its fine-tuning (a function of cga.py)
and its attention (src/quantization/modules/attention.py, without rounded activations) run as
they are; the lines that freeze gradients and restore weights stand in cga.py's training loop.
"""

import ast
import itertools
import sys
import types
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from _official import prepare, save

prepare()
zeros = torch.zeros
torch.zeros = lambda *sizes, device=None, **options: zeros(*sizes, **options)  # never on a GPU
PACKAGES = "src", *(f"src.quantization{name}" for name in ("", ".modules", ".quantizer"))
for package in PACKAGES:
  sys.modules[package] = types.ModuleType(package)
  sys.modules[package].__path__ = [str(Path(sys.argv[1], *package.split(".")).resolve())]


class Attention(torch.nn.Module):
  """What the official attention is derived from."""


STUBS = ("imp", "timm", "timm.models", "timm.models.layers", "src.deit_vision_transformer")
sys.modules |= {name: mock.MagicMock() for name in STUBS}
sys.modules["src.deit_vision_transformer"].Attention = Attention
sys.modules["src.deit_vision_transformer"].Mlp = torch.nn.Module
from src.quantization.modules.attention import QAttention_qkreparam  # noqa: E402
from src.quantization.quantizer.lsq import LsqQuantizerWeight_iterative_freezing  # noqa: E402
from src.quantization.quantizer.statsq import StatsQuantizer  # noqa: E402

STEPS, RATE, DECAY, BOUNDARY = 24, 0.02, 0.1, 0.1
SIZES, EXAMPLES = (6, 8, 3), 16
HEADS, WIDTH, TOKENS = 2, 6, 5


def official_mask():
  """`freeze_outside_boundary_weight_idx` of cga.py, which is 1 where weights are frozen."""
  tree = ast.parse(Path(sys.argv[1], "cga.py").read_text(encoding="utf-8"))
  name = "freeze_outside_boundary_weight_idx"
  (node,) = (n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == name)
  space = {"torch": torch, "np": np}
  exec(compile(ast.Module([node], []), "cga.py", "exec"), space)
  return space[name]


def problem():
  torch.manual_seed(0)
  layers = [torch.nn.Linear(n, m, bias=False) for n, m in itertools.pairwise(SIZES)]
  return layers, torch.randn(EXAMPLES, SIZES[0]), torch.randn(EXAMPLES, SIZES[-1])


def loss_of(layers, quantisers, inputs, targets):
  hidden = torch.relu(inputs @ quantisers[0](layers[0].weight).T)
  return ((hidden @ quantisers[1](layers[1].weight).T - targets) ** 2).mean()


def named(pair):
  return dict(zip(("first", "second"), pair, strict=True))


def kernels(layers):
  return named(layer.weight.detach().T.clone() for layer in layers)


def statsq():
  """Training by AdamW, then fine-tuning by another AdamW with frozen weights."""
  layers, inputs, targets = problem()
  quantisers, frozen = [StatsQuantizer(2, False) for _ in layers], official_mask()
  weights, values, shares = [], [], []
  start = kernels(layers)
  for annealing in (False, True):
    parameters = [layer.weight for layer in layers]
    optimizer = torch.optim.AdamW(parameters, lr=RATE, weight_decay=DECAY)
    for _ in range(STEPS):
      loss = loss_of(layers, quantisers, inputs, targets)
      optimizer.zero_grad()
      loss.backward()
      masks = [frozen(w, 2, boundaryRange=BOUNDARY).detach() for w in parameters]
      before = [(w * m).detach().clone() for w, m in zip(parameters, masks, strict=True)]
      if annealing:
        for w, m in zip(parameters, masks, strict=True):
          w.grad = w.grad * m * 0.0 + w.grad * (1 - m)
      optimizer.step()
      if annealing:
        for w, m, still in zip(parameters, masks, before, strict=True):
          w.data.copy_(w.detach().clone() * (1 - m) + still)
      values.append(loss.item())
      shares.append(sum(m.sum().item() for m in masks) / sum(m.numel() for m in masks))
      weights.append(kernels(layers))
  rounded = named(q(w.weight).detach().T for q, w in zip(quantisers, layers, strict=True))
  return {
    "start": start,
    "inputs": inputs,
    "targets": targets,
    "losses": values,
    "frozen": shares,
    "middle": weights[STEPS - 1],
    "end": weights[-1],
    "rounded": rounded,
  }


def lsq():
  """Training by SGD with large steps, so that weights go to and fro; their tracker."""
  layers, inputs, targets = problem()
  quantisers = [LsqQuantizerWeight_iterative_freezing(bit=3).train() for _ in layers]
  start = kernels(layers)
  loss_of(layers, quantisers, inputs, targets)
  for quantiser in quantisers:  # that pass made the scales; the tracker begins with the next
    quantiser.weight_freeze_tracker = type(quantiser.weight_freeze_tracker)(momentum=0.05)
  parameters = [layer.weight for layer in layers] + [q.s for q in quantisers]
  optimizer = torch.optim.SGD(parameters, lr=0.5)
  values, steps = [], [[q.s.detach().clone() for q in quantisers]]
  for _ in range(STEPS + 1):  # the last one only tracks
    loss = loss_of(layers, quantisers, inputs, targets)
    if len(values) == STEPS:
      break
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    values.append(loss.item())
    steps.append([q.s.detach().clone() for q in quantisers])
  return {
    "start": start,
    "losses": values,
    "scales": named(torch.stack(each) for each in zip(*steps, strict=True)),
    "end": kernels(layers),
    "frequency": named(q.weight_freeze_tracker.ema_oscillation.detach().T for q in quantisers),
  }


def qk_reparam():
  """Attention whose queries and keys are trained by SGD through their rounded product."""
  torch.manual_seed(1)
  layer = QAttention_qkreparam.__new__(QAttention_qkreparam)
  torch.nn.Module.__init__(layer)
  for name in ("quant_x_4_qkv", "v_quant", "quan_a_qkx_fn", "quan_a_v_fn", "quan_a_softmax_fn"):
    setattr(layer, name, torch.nn.Identity())
  for name in ("move_qkx_b4", "move_qkx_aft", "move_v_b4", "move_v_aft", "attn_drop", "proj_drop"):
    setattr(layer, name, torch.nn.Identity())
  layer.q, layer.k = (torch.nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(2))
  layer.v, layer.proj = (torch.nn.Linear(WIDTH, WIDTH) for _ in range(2))
  layer.qk_quant = StatsQuantizer(2, False)
  layer.num_heads, layer.scale = HEADS, (WIDTH // HEADS) ** -0.5
  inputs, targets = torch.randn(4, TOKENS, WIDTH), torch.randn(4, TOKENS, WIDTH)

  def weights():
    return {n: p.detach().clone() for n, p in layer.named_parameters() if "clip_val" not in n}

  start, values = weights(), []
  optimizer = torch.optim.SGD(layer.parameters(), lr=0.5)
  for _ in range(STEPS):
    loss = ((layer(inputs)[0] - targets) ** 2).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    values.append(loss.item())
  given = {"inputs": inputs, "targets": targets, "heads": HEADS}
  return {**given, "start": start, "losses": values, "end": weights()}


save(
  __file__,
  {
    "steps": STEPS,
    "learning_rate": RATE,
    "weight_decay": DECAY,
    "boundary": BOUNDARY,
    "statsq": statsq(),
    "lsq": lsq(),
    "qk_reparam": qk_reparam(),
  },
)
