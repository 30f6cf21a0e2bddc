"""Attach adapters to chosen modules; count, save, load and merge them. The only file that knows PEFT. Imports torch.

The head follows its policy alone, whatever the targets say: "train" trains it fully (PEFT keeps the untrained original
next to the trained copy), "lora" adapts its last layer, "freeze" leaves its new weights unchanged.
"""

from __future__ import annotations

import json
import math
import re
import shutil
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import AdaLoraConfig, IA3Config, LoKrConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peft import LoraConfig as PeftConfig
from peft.tuners.adalora import AdaLoraLayer
from peft.tuners.ia3 import IA3Layer
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import ModulesToSaveWrapper
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sousa_engine.backbones.spec import Network
from sousa_engine.core.config import LoraConfig, TargetModule
from sousa_engine.core.errors import TargetError, WeightsError, nearest
from sousa_engine.core.methods import first_rank

TRAINED_FILE = "trained.safetensors"  # what is saved without an adapter: linear probe, BitFit, full fine-tuning


def attach(network: Network, lora: LoraConfig, *, total_steps: int = 1000) -> nn.Module:
    """The network with an adapter on each target and the head as its policy says; everything else is frozen.

    Changes network.module in place. Every target is matched again: TargetError if its path is gone, or its kind or
    shape has changed. Without an adapter (no targets, BitFit, full fine-tuning) it is the plain module. Adapters start
    as a no-op. total_steps: of the run; AdaLoRA's schedule needs it.
    """
    targets = [t for t in lora.targets if not _within(t.path, network.head_path)]
    for target in targets:
        _match(network, target)
    ranks = {target.path: lora.ranks.get(target.path, lora.r) for target in targets}
    if lora.head == "lora":
        ranks[_head_layer(network)] = lora.r
    if not ranks:
        return _without_adapter(network, lora)
    config = _peft_config(lora, ranks, network.head_path, total_steps)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT uses a name that transformers 6 will remove
        module = get_peft_model(network.module, config)  # pyright: ignore[reportArgumentType]
    adapted = counts(module)[2]
    assert adapted == len(ranks), f"{len(ranks)} targets, but {adapted} adapted modules"
    if lora.method == "pissa":
        _remember_start(module)
    return module


def counts(module: nn.Module) -> tuple[int, int, int]:
    """(trainable parameters, total parameters, modules that have an adapter).

    The total is that of the plain network: without adapters, and with one head, not PEFT's frozen original and its
    copy. So 100 * trainable / total is the percentage that targets.count returns.
    """
    trainable = total = 0
    for name, parameter in module.named_parameters():
        trainable += parameter.numel() * parameter.requires_grad
        if not any(part in _NOT_OF_THE_NETWORK for part in name.split(".")):
            total += parameter.numel()
    return trainable, total, sum(isinstance(child, BaseTunerLayer) for child in module.modules())


_NOT_OF_THE_NETWORK = {
    "original_module", "lora_A", "lora_B", "lora_E", "ranknum", "lora_embedding_A", "lora_embedding_B",
    "lora_magnitude_vector", "ia3_l", "lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b",
}  # fmt: skip


def extra_loss(module: nn.Module) -> Tensor | None:
    """A method's own term of the loss: AdaLoRA keeps A and B nearly orthogonal (Zhang et al. 2023, equation 4)."""
    if not _is_adalora(module):
        return None
    apart = []
    for name, parameter in module.named_parameters():
        if ".lora_A." in name or ".lora_B." in name:
            cov = parameter @ parameter.T if ".lora_A." in name else parameter.T @ parameter
            apart.append(torch.linalg.norm(cov - torch.eye(len(cov), device=cov.device)))
    return 0.5 * torch.stack(apart).mean()


def after_step(module: nn.Module, step: int) -> None:
    """Call after the optimiser's step and before gradients are cleared: AdaLoRA prunes ranks. step: from 1."""
    if _is_adalora(module):
        module.base_model.update_and_allocate(step)  # pyright: ignore[reportCallIssue]


def update_norms(module: nn.Module) -> dict[str, float]:
    """How far training moved each adapted module: path, as targets name it -> ||W' - W|| / ||W||.

    Frobenius norms. W: the weight before training; W': the weight that `merge` would write, so alpha / r, DoRA's
    magnitude and PiSSA's start are included. A fraction, not per cent; 0 before the first step; NaN if a weight is NaN.
    IA3's effect on a bias is not counted, and a weight of zeros is left out. Includes the head's layer if it is
    adapted. Empty if no module is (linear probe, BitFit, full fine-tuning).
    """
    squares: dict[str, tuple[float, float]] = {}
    start = getattr(module, _START, {})
    with torch.no_grad():
        for name, layer in module.named_modules():
            if isinstance(layer, BaseTunerLayer):
                first = [start[f"{name}.lora_{part}.default.weight"] for part in "BA"] if start else None
                squares[name.removeprefix("base_model.model.")] = _squares(layer, first)
    return {path: math.sqrt(max(change, 0) / whole) for path, (change, whole) in squares.items() if whole > 0}


def save(module: nn.Module, folder: Path) -> None:
    """Write the trained parts: a PEFT adapter (with the head, if it trains), or the plain parameters that trained.

    The folder appears complete or not at all. A PEFT adapter opens with peft.PeftModel.from_pretrained(plain, folder).
    PiSSA changed the weights next to it, so its adapter is written as the LoRA of rank 2 r that has the same effect on
    the plain network; AdaLoRA's has zeros in place of the ranks it pruned.
    """
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    if isinstance(module, PeftModel):
        if _is_adalora(module):
            module.active_peft_config.rank_pattern = None
        module.save_pretrained(str(unfinished), save_embedding_layers=False)
        if hasattr(module, _START):
            _write_as_lora(module, unfinished)
        (unfinished / "README.md").unlink(missing_ok=True)  # PEFT's empty template
    else:
        unfinished.mkdir(parents=True)
        save_file(trained_state(module), unfinished / TRAINED_FILE)
    shutil.rmtree(folder, ignore_errors=True)
    unfinished.rename(folder)


def load(network: Network, folder: Path) -> nn.Module:
    """The network with what `save` wrote, frozen, in eval mode. Changes network.module in place.

    The network must have been built with the weights it was trained on. Raises WeightsError if the folder holds no
    adapter, or one for another network or another number of classes.
    """
    if (folder / TRAINED_FILE).is_file():
        state: dict[str, Any] = load_file(folder / TRAINED_FILE)
        mine = {k: v for k, v in network.module.state_dict().items() if k in state or _within(k, network.head_path)}
        _check_fits(folder, _shapes(state), _shapes(mine))
        network.module.load_state_dict(state, strict=False)
        return network.module.requires_grad_(False).eval()
    if not (folder / "adapter_config.json").is_file() or not (folder / "adapter_model.safetensors").is_file():
        raise WeightsError(f"{folder} holds no adapter: adapter_config.json or adapter_model.safetensors is missing.")
    stored = _shapes(load_file(folder / "adapter_model.safetensors"))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # tensors that do not fit raise an error below
            module = PeftModel.from_pretrained(network.module, str(folder))  # pyright: ignore[reportArgumentType]
    except (RuntimeError, ValueError) as error:
        first = str(error).strip().splitlines()[-1].strip()
        raise WeightsError(f"The adapter in {folder} does not fit {network.variant.name}: {first}") from None
    _check_fits(folder, stored, _shapes(get_peft_model_state_dict(module, save_embedding_layers=False)))
    return module.eval()


def merge(module: nn.Module) -> nn.Module:
    """The plain network with the adapters merged into its weights. Changes the module in place.

    Raises ValueError if an adapter holds NaN or an infinite value.
    """
    if not isinstance(module, PeftModel):
        return module
    for path, child in list(module.named_modules()):  # PEFT's IA3 and LoKr fail on a head of several layers
        if isinstance(child, ModulesToSaveWrapper):
            parent, _, name = path.rpartition(".")
            setattr(module.get_submodule(parent), name, child.modules_to_save[child.active_adapters[0]])
    return module.merge_and_unload(safe_merge=True)  # pyright: ignore[reportCallIssue]


def parameter_groups(
    module: nn.Module, head_path: str, *, lr: float, head_lr: float, weight_decay: float, plus_ratio: float = 1.0
) -> list[dict[str, Any]]:
    """Optimiser groups of all that trains: adapters at lr, the head and its LoRA at head_lr; no decay on vectors.

    plus_ratio: how much faster B learns than A (LoRA+).
    """
    groups: dict[tuple[str, bool], dict[str, Any]] = {}
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        where = "head" if _within(name.removeprefix("base_model.model."), head_path) else "adapters"
        rate = head_lr if where == "head" else lr
        if plus_ratio != 1.0 and (".lora_B." in name or ".lora_embedding_B." in name):
            where, rate = f"{where}, B", rate * plus_ratio
        decays = parameter.ndim > 1
        group = {
            "name": where if decays else f"{where}, no decay",
            "params": [],
            "lr": rate,
            "weight_decay": weight_decay if decays else 0.0,
        }
        groups.setdefault((where, decays), group)["params"].append(parameter)
    return list(groups.values())


def trained_state(module: nn.Module) -> dict[str, Tensor]:
    """Everything in the network that training changes, copied to the CPU; a checkpoint needs no more of it.

    Trainable parameters, and the statistics of each BatchNorm whose weight trains.
    """
    state = {name: p for name, p in module.named_parameters() if p.requires_grad}
    for path, child in module.named_modules():
        if isinstance(child, _BatchNorm) and child.weight is not None and child.weight.requires_grad:
            state |= {f"{path}.{name}" if path else name: buffer for name, buffer in child.named_buffers()}
    return {name: value.detach().cpu().clone().contiguous() for name, value in state.items()}


def load_trained(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Restore what `trained_state` returned."""
    own = dict(module.named_parameters()) | dict(module.named_buffers())
    with torch.no_grad():
        for name, value in state.items():
            own[name].copy_(value)


def method_state(module: nn.Module) -> dict[str, Any]:
    """What a method keeps between steps besides its parameters: AdaLoRA's scores and the ranks it pruned."""
    if not _is_adalora(module):
        return {}
    tuner: Any = module.base_model
    scores = {
        name: {key: value.cpu().clone() for key, value in getattr(tuner.rankallocator, name).items()}
        for name in _SCORES
    }
    return {**scores, "rank_pattern": module.active_peft_config.rank_pattern}  # pyright: ignore


def load_method_state(module: nn.Module, state: Mapping[str, Any]) -> None:
    """Restore what `method_state` returned."""
    if not state:
        return
    tuner: Any = module.base_model
    device = {name: parameter.device for name, parameter in tuner.model.named_parameters()}
    for name in _SCORES:
        setattr(tuner.rankallocator, name, {key: value.to(device[key]) for key, value in state[name].items()})
    module.active_peft_config.rank_pattern = state["rank_pattern"]  # pyright: ignore


_SCORES = ("ipt", "exp_avg_ipt", "exp_avg_unc")  # of PEFT's RankAllocator


def _peft_config(lora: LoraConfig, ranks: Mapping[str, int], head_path: str, total_steps: int) -> Any:
    """PEFT's own config. ranks: of every adapted module. PEFT reads paths as patterns, so they are escaped."""
    shared: dict[str, Any] = {
        "target_modules": list(ranks),
        "modules_to_save": [head_path] if lora.head == "train" else None,
    }
    if lora.method == "ia3":
        return IA3Config(**shared, feedforward_modules=[])  # one factor per output, in every module
    own = {path: rank for path, rank in ranks.items() if rank != lora.r}
    pattern = {re.escape(path): rank for path, rank in own.items()}
    # Keep the scaling alpha / r the same for all modules; rsLoRA's alpha / sqrt(r) needs no such correction.
    alphas = {} if lora.method == "rslora" else {re.escape(p): lora.alpha * rank / lora.r for p, rank in own.items()}
    shared |= {"r": lora.r, "rank_pattern": pattern, "alpha_pattern": alphas}
    if lora.method == "lokr":
        return LoKrConfig(**shared, alpha=lora.alpha)  # pyright: ignore[reportArgumentType]
    shared |= {"lora_alpha": lora.alpha, "lora_dropout": lora.dropout}
    if lora.method == "adalora":
        del shared["r"], shared["rank_pattern"], shared["alpha_pattern"]
        return AdaLoraConfig(
            **shared,
            init_r=first_rank(lora.r),
            target_r=lora.r,
            tinit=total_steps // 10,  # ranks are pruned between these two steps
            tfinal=total_steps // 2,
            deltaT=max(1, total_steps // 100),
            total_step=max(total_steps, 2),
        )
    return PeftConfig(
        **shared,
        use_rslora=lora.method == "rslora",
        use_dora=lora.method == "dora",
        init_lora_weights="pissa" if lora.method == "pissa" else True,
    )


def _without_adapter(network: Network, lora: LoraConfig) -> nn.Module:
    """The plain network, in which only the head, the biases or everything trains."""
    if lora.head == "freeze" and lora.method not in ("bitfit", "full"):
        raise TargetError(
            "Nothing would train: there are no targets and the head is frozen. Select modules, or set lora.head=train."
        )
    for name, parameter in network.module.named_parameters():
        trains = lora.method == "full" or (lora.method == "bitfit" and name.rpartition(".")[2] == "bias")
        parameter.requires_grad_(lora.head == "train" if _within(name, network.head_path) else trains)
    return network.module


_START = "_pissa_start"


def _remember_start(module: nn.Module) -> None:
    """Keep PiSSA's first A and B: it took them out of the weights, and the plain network still contains them."""
    start = {k: v.detach().clone() for k, v in module.named_parameters() if ".lora_A." in k or ".lora_B." in k}
    object.__setattr__(module, _START, start)


def _write_as_lora(module: nn.Module, folder: Path) -> None:
    """Write B A - B0 A0 as one LoRA of twice the rank on the plain network: A and -A0 stacked, B and B0 joined."""
    start, adapter = getattr(module, _START), load_file(folder / "adapter_model.safetensors")
    for name, first in start.items():
        key = name.replace(".default.", ".")
        first = first.cpu()
        adapter[key] = (
            torch.cat((adapter[key], -first), 0) if ".lora_A." in name else torch.cat((adapter[key], first), 1)
        )
    save_file({key: value.contiguous() for key, value in adapter.items()}, folder / "adapter_model.safetensors")
    config = json.loads((folder / "adapter_config.json").read_text())
    config |= {"init_lora_weights": True, "r": 2 * config["r"], "lora_alpha": 2 * config["lora_alpha"]}
    for pattern in ("rank_pattern", "alpha_pattern"):
        config[pattern] = {path: 2 * value for path, value in config[pattern].items()}
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def _squares(layer: Any, first: Sequence[Tensor] | None) -> tuple[float, float]:
    """(||W' - W||^2, ||W||^2) of one adapted layer. first: the B and A that PiSSA took out of its weight, else None."""
    weight = layer.get_base_layer().weight.flatten(1)
    whole = weight.square().sum().item()
    is_low_rank = isinstance(layer, LoraLayer) and not isinstance(layer, AdaLoraLayer)
    if not is_low_rank or layer.lora_magnitude_vector:
        return _change(layer, weight).square().sum().item(), whole
    scale = layer.scaling["default"]
    if layer.lora_embedding_A:
        b, a = layer.lora_embedding_B["default"], layer.lora_embedding_A["default"]
    else:
        b, a = (part["default"].weight.flatten(1) for part in (layer.lora_B, layer.lora_A))
    if first is None:
        return scale**2 * _square_of_product(b, a), whole
    b0, a0 = (part.to(weight.device) for part in first)
    whole += 2 * scale * ((b0.T @ weight) * a0).sum().item() + scale**2 * _square_of_product(b0, a0)
    # B A - B0 A0 as one product that is exactly 0 at the start: (B - B0) A + B0 (A - A0).
    return scale**2 * _square_of_product(torch.cat((b - b0, b0), 1), torch.cat((a, a - a0), 0)), whole


def _square_of_product(b: Tensor, a: Tensor) -> float:
    """||B A||^2 = trace((A A^T)(B^T B)): two rank x rank matrices instead of one as large as the weight.

    In float64, so on the CPU (MPS has no float64): PiSSA leaves small differences of large products.
    """
    b, a = b.cpu().double(), a.cpu().double()
    return ((a @ a.T) * (b.T @ b)).sum().item()


def _change(layer: Any, weight: Tensor) -> Tensor:
    """W' - W as (out, in * ...), for methods whose norm has no such short form."""
    if isinstance(layer, IA3Layer):
        return weight * (layer.ia3_l["default"].flatten()[:, None] - 1)
    change = layer.get_delta_weight("default").flatten(1)
    if not isinstance(layer, LoraLayer) or not layer.lora_magnitude_vector:
        return change
    magnitude = layer.lora_magnitude_vector["default"].weight.flatten()[:, None]
    moved = weight + change
    return moved * (magnitude / moved.norm(dim=1, keepdim=True)) - weight


def _is_adalora(module: nn.Module) -> bool:
    return isinstance(module, PeftModel) and isinstance(module.active_peft_config, AdaLoraConfig)


def _match(network: Network, target: TargetModule) -> None:
    modules = dict(network.module.named_modules())
    name = network.variant.name
    if target.path not in modules:
        near = ", ".join(nearest(target.path, modules))
        raise TargetError(f"{target.path!r} is not a module of {name}. Nearest: {near}. Select it again in the tree.")
    found = modules[target.path]
    weight = getattr(found, "weight", None)
    shape = tuple(weight.shape) if weight is not None else ()
    if (type(found).__name__, shape) != (target.kind, target.shape):
        raise TargetError(
            f"{target.path!r} of {name} is {type(found).__name__} {shape}, but the run expects "
            f"{target.kind} {target.shape}. Select it again in the tree."
        )


def _head_layer(network: Network) -> str:
    """Path of the head's layer that has one row per class."""
    layers = [
        path
        for path, child in network.module.named_modules()
        if _within(path, network.head_path)
        and isinstance(child, nn.Linear | nn.Conv2d)
        and len(child.weight) == network.num_classes
    ]
    return layers[-1]


def _within(name: str, path: str) -> bool:
    return name == path or name.startswith(f"{path}.")


def _shapes(state: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in state.items()}


def _check_fits(folder: Path, stored: dict[str, tuple[int, ...]], wanted: dict[str, tuple[int, ...]]) -> None:
    differing = sorted(key for key in stored.keys() | wanted.keys() if stored.get(key) != wanted.get(key))
    if differing:
        key = differing[0]
        raise WeightsError(
            f"{folder} does not fit this network: {len(differing)} tensors differ (first: {key}, "
            f"{stored.get(key, 'missing')} in the file, {wanted.get(key, 'none')} in the network)."
        )
