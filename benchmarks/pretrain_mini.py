"""Pre-train one of the embedded small backbones. Independent of the store and of runs.

    python -m benchmarks.pretrain_mini htsat-mini --work /tmp/htsat-mini   # corpus, training, export; resumes

The input is synthesised strokes in random patterns (stroke_patterns.py), none of them one of the 40 rudiments,
with players that are in no data set of the engine. It learns these targets, none of them one of the 40 classes:
- for every time step: whether there is an onset; at onsets: hand, accent, flam, drag, buzz, and the gap to the next
  stroke relative to the shortest of the pattern (binary cross-entropy and cross-entropy per step);
- for the clip: the same for the first strokes in order, the length of the cycle in strokes, and that two renderings of
  one pattern (other player, tempo, room) are closer than patterns that differ in one thing (supervised contrastive
  loss).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import time
from dataclasses import asdict, fields
from pathlib import Path

import numpy as np

from benchmarks.minis import RECIPES, Recipe, frames, variant
from benchmarks.stroke_corpus import FLAGS, Batches, make_corpus, normalisation
from sousa_engine import backbones

WEIGHTS = Path(__file__).parents[1] / "sousa_engine" / "backbones" / "weights"
SEQUENCE = 20  # strokes spelled out by the pooled vector
RATIOS = (
    1.0,
    4 / 3,
    1.5,
    2.0,
    8 / 3,
    3.0,
    4.0,
    6.0,
    8.0,
)  # gap / shortest gap; the closest ratio is the class
PERIODS = 40
MUON = ("attention.", "mlp.", "merge", "se", "pointwise")  # roles whose matrices Muon trains


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("variant", choices=RECIPES)
    parser.add_argument("--work", type=Path, required=True, help="folder for corpus and checkpoints")
    parser.add_argument("--corpus", type=Path, help="folder of an existing corpus (default: inside --work)")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--to", type=Path, default=WEIGHTS, help="folder for the weights, their card and the log")
    parser.add_argument("--minutes", type=float, default=0.0, help="stop after this time; a later call resumes")
    for each in fields(Recipe):
        if each.type in ("int", "float"):
            parser.add_argument(f"--{each.name.replace('_', '-')}", type={"int": int, "float": float}[str(each.type)])
    args = vars(parser.parse_args())
    base = RECIPES[args["variant"]]
    given = {each.name: args[each.name] for each in fields(Recipe) if args.get(each.name) is not None}
    recipe = Recipe(**{each.name: getattr(base, each.name) for each in fields(Recipe)} | given)
    args["work"].mkdir(parents=True, exist_ok=True)
    corpus = args["corpus"] or args["work"]
    make_corpus(recipe, corpus, args["processes"])
    train(recipe, corpus, args["work"], args["minutes"])
    if finished(recipe, args["work"]):
        export(recipe, corpus, args["work"], args["to"] / recipe.variant)


# Training ----------------------------------------------------------------------------------------------------------


def build(recipe: Recipe):
    """The network with its pre-training heads (dropped at export)."""
    import torch
    from torch import nn

    chosen = variant(recipe)

    class Pretraining(nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone = backbones.family(chosen).networks().network(chosen, 1, recipe.seed)
            spec = chosen.front_end
            with torch.no_grad():
                steps, pooled = self.backbone.eval().embed(torch.zeros(1, frames(recipe), spec.mel_bins))
            self.steps, width = steps.shape[1], pooled.shape[1]
            self.tags = nn.Linear(steps.shape[2], recipe.window * (1 + len(FLAGS) + len(RATIOS)))
            self.sequence = nn.Linear(width, SEQUENCE * (len(FLAGS) + len(RATIOS)))
            self.period = nn.Linear(width, 2 * PERIODS)
            self.project = nn.Sequential(nn.Linear(width, 256), nn.GELU(), nn.Linear(256, 128))

        def forward(self, x):
            steps, pooled = self.backbone.embed(x)
            return (
                self.tags(steps).unflatten(-1, (recipe.window, -1)),
                self.sequence(pooled).unflatten(-1, (SEQUENCE, -1)),
                self.period(pooled).unflatten(-1, (2, PERIODS)),
                torch.nn.functional.normalize(self.project(pooled), dim=-1),
            )

    torch.manual_seed(recipe.seed)
    return Pretraining()


def losses(recipe: Recipe, outputs, batch) -> dict:
    """The named losses of a batch, and some accuracies for the log."""
    import torch
    import torch.nn.functional as F

    tags, sequence, period, embedding = outputs
    events, periods, pattern = batch["events"], batch["periods"], batch["pattern"]
    n, steps, width = tags.shape[:3]
    spec = variant(recipe).front_end
    long = max(frames(recipe), (steps - 1) * recipe.stride + width)
    nf = len(FLAGS)
    there = events[..., 0] >= 0
    clip, row = there.nonzero(as_tuple=True)
    found = events[clip, row]
    first_ms = spec.frame_ms / 2 if spec.kind == "kaldi-fbank" else 0.0  # the middle of the first frame
    frame = ((1000 * found[:, 0] - first_ms) / spec.hop_ms).round().long().clamp(0, frames(recipe) - 1)
    ratio = (found[:, 1:2] - torch.tensor(RATIOS)).abs().argmin(-1)
    truth = torch.zeros(n, long, 2 + nf)
    truth[clip, frame, 0] = 1.0
    truth[clip, frame, 1 : 1 + nf] = found[:, 2:]
    truth[clip, frame, 1 + nf] = ratio.float()
    truth = truth.unfold(1, width, recipe.stride).transpose(2, 3)[:, :steps]  # (n, steps, width, fields)
    onset = F.binary_cross_entropy_with_logits(tags[..., 0], truth[..., 0], pos_weight=torch.tensor(4.0))
    at = truth[..., 0] > 0
    flags = F.binary_cross_entropy_with_logits(tags[..., 1 : 1 + nf][at], truth[..., 1 : 1 + nf][at])
    rhythm = F.cross_entropy(tags[..., 1 + nf :][at], truth[..., 1 + nf][at].long())

    first = there[:, :SEQUENCE]
    spelled, heard = sequence[first], events[:, :SEQUENCE][first]
    order_flags = F.binary_cross_entropy_with_logits(spelled[:, :nf], heard[:, 2:])
    heard_ratio = (heard[:, 1:2] - torch.tensor(RATIOS)).abs().argmin(-1)
    order_rhythm = F.cross_entropy(spelled[:, nf:], heard_ratio)
    cycle = F.cross_entropy(period.flatten(0, 1), periods.clamp(max=PERIODS).flatten() - 1)

    alike = embedding @ embedding.T / recipe.temperature
    alike = alike - 1e9 * torch.eye(n)
    same = (pattern[:, None] == pattern[None]) & ~torch.eye(n, dtype=torch.bool)
    contrast = -(alike.log_softmax(-1) * same).sum(-1) / same.sum(-1)
    with torch.no_grad():
        right = ((tags[..., 1 : 1 + nf] > 0) == (truth[..., 1 : 1 + nf] > 0.5))[at].float().mean(0)
        order = ((spelled[:, :nf] > 0) == (heard[:, 2:] > 0.5)).float().mean(0)
        seen = {
            "acc/ratio": (tags[..., 1 + nf :][at].argmax(-1) == truth[..., 1 + nf][at]).float().mean().item(),
            "acc/seq_ratio": (spelled[:, nf:].argmax(-1) == heard_ratio).float().mean().item(),
            "acc/period": (period.argmax(-1) == periods - 1).float().mean().item(),
            "acc/contrast": same.gather(1, alike.argmax(-1, keepdim=True)).float().mean().item(),
            **{f"acc/{k}": v.item() for k, v in zip(FLAGS, right, strict=True)},
            **{f"acc/seq_{k}": v.item() for k, v in zip(FLAGS, order, strict=True)},
        }
    return {
        "loss": recipe.w_tags * (onset + flags + rhythm)
        + recipe.w_sequence * (order_flags + order_rhythm)
        + recipe.w_period * cycle
        + recipe.w_contrast * contrast.mean(),
        "loss/onset": onset,
        "loss/flags": flags,
        "loss/ratio": rhythm,
        "loss/seq_flags": order_flags,
        "loss/seq_ratio": order_rhythm,
        "loss/period": cycle,
        "loss/contrast": contrast.mean(),
        **seen,
    }


def make_optimizer(recipe: Recipe, network):
    """Muon for the matrices in the blocks of the backbone (1x1 convolutions too), AdamW for all other parameters.

    Muon (Jordan et al. 2024): the momentum of a matrix, made orthogonal by five Newton-Schulz steps, scaled so that
    its elements are as large as AdamW's.
    """
    import torch

    class Muon(torch.optim.Optimizer):
        @torch.no_grad()
        def step(self):
            for group in self.param_groups:
                (self._adamw if group["kind"] == "adamw" else self._muon)(group)

        def _adamw(self, group):
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    state |= {"m": torch.zeros_like(p), "v": torch.zeros_like(p), "t": torch.tensor(0.0)}
                state["t"] += 1
                state["m"].lerp_(p.grad, 0.1)
                state["v"].lerp_(p.grad.square(), 0.02)
                m, v = state["m"] / (1 - 0.9 ** state["t"]), state["v"] / (1 - 0.98 ** state["t"])
                p.mul_(1 - group["lr"] * (recipe.weight_decay if p.ndim > 1 else 0.0))
                p.sub_(group["lr"] * m / (v.sqrt() + 1e-8))

        def _muon(self, group):
            shapes = {}
            for p in group["params"]:
                shapes.setdefault(tuple(p.flatten(1).shape), []).append(p)
            for shape, params in shapes.items():
                grads = torch.stack([p.grad.flatten(1) for p in params])
                momentum = torch.stack(
                    [self.state[p].setdefault("momentum", torch.zeros_like(p.flatten(1))) for p in params]
                )
                momentum = momentum.lerp(grads, 0.05)
                update = orthogonal(grads.lerp(momentum, 0.95)) * 0.2 * max(shape) ** 0.5
                for p, u, m in zip(params, update, momentum, strict=True):
                    self.state[p]["momentum"].copy_(m)
                    p.mul_(1 - group["lr"] * recipe.weight_decay).sub_(group["lr"] * u.view_as(p))

    def orthogonal(x):
        tall = x.shape[-2] > x.shape[-1]
        x = x.mT if tall else x
        x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
        for _ in range(5):
            a = x @ x.mT
            x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
        return x.mT if tall else x

    role = backbones.family(variant(recipe)).role
    matrices = [
        p
        for name, p in network.backbone.named_parameters()
        if p.ndim > 1 and role(name.rpartition(".")[0])[0].startswith(MUON)
    ]
    theirs = {id(p) for p in matrices}
    head = variant(recipe).head_path
    others = [
        p
        for name, p in network.named_parameters()
        if id(p) not in theirs and not name.startswith(f"backbone.{head}.")  # the head is not used here
    ]
    return Muon(
        [
            {"params": matrices, "kind": "muon", "lr": recipe.lr * recipe.muon_lr_factor},
            {"params": others, "kind": "adamw", "lr": recipe.lr},
        ],
        {},
    )


def train(recipe: Recipe, corpus: Path, work: Path, minutes: float) -> None:
    import torch

    torch.set_float32_matmul_precision("medium")
    network = build(recipe)
    batches = Batches(recipe, corpus)
    optimizer = make_optimizer(recipe, network)
    scale = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: _rate(s, recipe))
    checkpoint, step = work / "checkpoint.pt", 0
    (work / "log.jsonl").touch()
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        scale.load_state_dict(state["scale"])
        step = state["step"]
        rows = [json.loads(line) for line in (work / "log.jsonl").read_text().splitlines()]
        (work / "log.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows if r["step"] <= step))
    print(f"{sum(p.numel() for p in network.backbone.parameters()):,} parameters; from step {step}", flush=True)
    started, since, mean, count = time.time(), time.time(), {}, 0
    network.train()
    while step < recipe.steps and (not minutes or time.time() - started < 60 * minutes):
        batch = batches.at(step)
        named = losses(recipe, network(batch["x"]), batch)
        optimizer.zero_grad(set_to_none=True)
        named["loss"].backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        scale.step()
        step, count = step + 1, count + 1
        for k, v in named.items():
            mean[k] = mean.get(k, 0.0) + (v if isinstance(v, float) else v.item())
        if step % 50 == 0 or step == recipe.steps:
            row = {"step": step, "seconds": round(time.time() - since, 1)}
            row |= {k: round(v / count, 4) for k, v in mean.items()}
            mean, count, since = {}, 0, time.time()
            if step % 200 == 0 or step == recipe.steps:
                row |= {f"held_out/{k}": v for k, v in _held_out(recipe, network, batches).items()}
            with (work / "log.jsonl").open("a") as log:
                log.write(json.dumps(row) + "\n")
            print(json.dumps(row), flush=True)
        if step % 100 == 0 or step == recipe.steps:
            _save(checkpoint, network, optimizer, scale, step)
    _save(checkpoint, network, optimizer, scale, step)


def _held_out(recipe, network, batches) -> dict:
    import torch

    network.eval()
    with torch.no_grad():
        rows = []
        for i in range(4):
            batch = batches.at(i, held_out=True)
            rows.append({k: float(v) for k, v in losses(recipe, network(batch["x"]), batch).items()})
    network.train()
    return {k: round(float(np.mean([r[k] for r in rows])), 4) for k in rows[0]}


def _rate(step: int, recipe: Recipe) -> float:
    """Warm-up, constant, then decay to zero over the last quarter; longer training only extends the middle."""
    down = (recipe.steps - step) / (0.25 * recipe.steps)
    return max(0.0, min((step + 1) / recipe.warmup, 1.0, down))


def _save(path: Path, network, optimizer, scale, step: int) -> None:
    import torch

    state = {
        "network": network.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scale": scale.state_dict(),
        "step": step,
    }
    part = path.with_suffix(".part")
    torch.save(state, part)
    part.replace(path)


# Export ------------------------------------------------------------------------------------------------------------


def finished(recipe: Recipe, work: Path) -> bool:
    import torch

    return torch.load(work / "checkpoint.pt", weights_only=True)["step"] >= recipe.steps


def export(recipe: Recipe, corpus: Path, work: Path, folder: Path) -> None:
    """Write the backbone without a head (matrices in float16), its card (config.json) and its training log."""
    import torch
    from safetensors.torch import save_file

    state = torch.load(work / "checkpoint.pt", weights_only=True)["network"]
    head = f"backbone.{variant(recipe).head_path}."
    tensors = {
        key.removeprefix("backbone."): (value.half() if value.ndim > 1 else value).contiguous()
        for key, value in state.items()
        if key.startswith("backbone.") and not key.startswith(head)
    }
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors")
    facts = json.loads((corpus / "corpus.json").read_text())
    mean, std = normalisation(recipe, facts)
    card = {
        "architecture": dict(recipe.architecture),
        "front_end": {**recipe.front_end, "mean": mean, "std": std},
        "parameters": sum(value.numel() for value in tensors.values()),
        "dtype": "float16 (matrices)",
        "sha256": hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest(),
        "licence": "MIT",
        "made_by": "benchmarks/pretrain_mini.py",
        "date": time.strftime("%Y-%m-%d"),
        "data": f"{facts['clips']:,} synthesised clips of {facts['patterns']:,} random stroke patterns; "
        "none of the 40 rudiments, and no player of the embedded data sets",
        "recipe": asdict(recipe),
    }
    (folder / "config.json").write_text(json.dumps(card, indent=1) + "\n")
    (folder / "log.jsonl").write_text((work / "log.jsonl").read_text())
    print(f"{folder}: {(folder / 'model.safetensors').stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
