"""Attach LoRA to chosen modules, count, save, load and merge it. The only file that knows PEFT. Imports torch.

The head belongs to its policy alone, whatever the targets say: "train" trains it fully (PEFT keeps the untrained
original beside the copy that trains), "lora" adapts its last layer, "freeze" leaves its new weights as they are.
"""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path
from typing import Any

from torch import nn

from sousa_engine.backbones.spec import Network
from sousa_engine.backbones.torchaudio_guard import import_torchaudio

import_torchaudio()  # PEFT imports transformers

from peft import LoraConfig as PeftConfig  # noqa: E402
from peft import PeftModel, get_peft_model, get_peft_model_state_dict  # noqa: E402
from peft.tuners.tuners_utils import BaseTunerLayer  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

from sousa_engine.config import LoraConfig, TargetModule  # noqa: E402
from sousa_engine.errors import TargetError, WeightsError, nearest  # noqa: E402

HEAD_FILE = "head.safetensors"  # what is saved where there is no adapter: a linear probe


def attach(network: Network, lora: LoraConfig) -> nn.Module:
    """The network with LoRA on its targets and its head as the policy says; everything else is frozen.

    Changes network.module itself. Every target is matched again: TargetError if the path is gone, or its kind or
    shape is another one. Without targets and without LoRA in the head it is the plain module (a linear probe). The
    adapters are an identity until the first step: B is zero.
    """
    targets = [t for t in lora.targets if not _within(t.path, network.head_path)]
    for target in targets:
        _match(network, target)
    paths = [target.path for target in targets]
    if lora.head == "lora":
        paths.append(_head_layer(network))
    if not paths:
        if lora.head == "freeze":
            raise TargetError(
                "Nothing would train: no targets and a frozen head. Tick modules, or set lora.head=train."
            )
        for name, parameter in network.module.named_parameters():
            parameter.requires_grad_(_within(name, network.head_path))
        return network.module
    config = PeftConfig(
        r=lora.r,
        lora_alpha=lora.alpha,  # pyright: ignore[reportArgumentType]
        lora_dropout=lora.dropout,
        target_modules=paths,
        modules_to_save=[network.head_path] if lora.head == "train" else None,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT asks transformers by a name that goes away in its v6
        module = get_peft_model(network.module, config)  # pyright: ignore[reportArgumentType]
    adapted = counts(module)[2]
    assert adapted == len(paths), f"{len(paths)} targets, but {adapted} modules were adapted."
    return module


def counts(module: nn.Module) -> tuple[int, int, int]:
    """(trainable parameters, total parameters, modules that have LoRA).

    The total is that of the plain network: without adapters, and with one head, not PEFT's frozen original beside its
    copy. So 100 * trainable / total is the percentage that module_tree.count gives.
    """
    trainable = total = 0
    for name, parameter in module.named_parameters():
        trainable += parameter.numel() * parameter.requires_grad
        if not any(part in _NOT_OF_THE_NETWORK for part in name.split(".")):
            total += parameter.numel()
    return trainable, total, sum(isinstance(child, BaseTunerLayer) for child in module.modules())


_NOT_OF_THE_NETWORK = {"lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B", "original_module"}


def save(module: nn.Module, folder: Path) -> None:
    """Write the trained parts: a PEFT adapter (with the head, if it trains), or the head alone of a linear probe.

    The folder appears whole or not at all. A PEFT adapter opens with peft.PeftModel.from_pretrained(plain, folder).
    """
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    if isinstance(module, PeftModel):
        module.save_pretrained(str(unfinished), save_embedding_layers=False)
        (unfinished / "README.md").unlink(missing_ok=True)  # PEFT's empty form
    else:
        unfinished.mkdir(parents=True)
        save_file(_trained(module), unfinished / HEAD_FILE)
    shutil.rmtree(folder, ignore_errors=True)
    unfinished.rename(folder)


def load(network: Network, folder: Path) -> nn.Module:
    """The network with what `save` wrote, frozen, in eval mode. Changes network.module itself.

    The network must have been built with the weights it was trained on. Raises WeightsError if the folder is no
    adapter, or one of another network or number of classes.
    """
    if (folder / HEAD_FILE).is_file():
        state: dict[str, Any] = load_file(folder / HEAD_FILE)
        head = {k: v for k, v in network.module.state_dict().items() if _within(k, network.head_path)}
        _check_fits(folder, _shapes(state), _shapes(head))
        network.module.load_state_dict(state, strict=False)
        return network.module.requires_grad_(False).eval()
    if not (folder / "adapter_config.json").is_file() or not (folder / "adapter_model.safetensors").is_file():
        raise WeightsError(f"{folder} holds no adapter: adapter_config.json or adapter_model.safetensors is missing.")
    stored = _shapes(load_file(folder / "adapter_model.safetensors"))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what does not fit is an error below
            module = PeftModel.from_pretrained(network.module, str(folder))  # pyright: ignore[reportArgumentType]
    except (RuntimeError, ValueError) as error:
        first = str(error).strip().splitlines()[-1].strip()
        raise WeightsError(f"The adapter in {folder} does not fit {network.variant.name}: {first}") from None
    _check_fits(folder, stored, _shapes(get_peft_model_state_dict(module, save_embedding_layers=False)))
    return module.eval()


def merge(module: nn.Module) -> nn.Module:
    """The plain network with the adapters added into its weights. Changes the module itself.

    Raises ValueError if an adapter holds a value that is not finite.
    """
    if isinstance(module, PeftModel):
        return module.merge_and_unload(safe_merge=True)  # pyright: ignore[reportCallIssue]
    return module


def parameter_groups(
    module: nn.Module, head_path: str, lr: float, head_lr: float, weight_decay: float
) -> list[dict[str, Any]]:
    """Optimiser groups of what trains: adapters at lr, the head (its LoRA too) at head_lr; no decay on vectors."""
    groups: dict[tuple[str, bool], dict[str, Any]] = {}
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        where = "head" if _within(name.removeprefix("base_model.model."), head_path) else "adapters"
        decays = parameter.ndim > 1
        group = {
            "name": where if decays else f"{where}, no decay",
            "params": [],
            "lr": head_lr if where == "head" else lr,
            "weight_decay": weight_decay if decays else 0.0,
        }
        groups.setdefault((where, decays), group)["params"].append(parameter)
    return list(groups.values())


def _match(network: Network, target: TargetModule) -> None:
    modules = dict(network.module.named_modules())
    name = network.variant.name
    if target.path not in modules:
        near = ", ".join(nearest(target.path, modules))
        raise TargetError(f"{target.path!r} is no module of {name}. Nearest: {near}. Tick it again in the tree.")
    found = modules[target.path]
    weight = getattr(found, "weight", None)
    shape = tuple(weight.shape) if weight is not None else ()
    if (type(found).__name__, shape) != (target.kind, target.shape):
        raise TargetError(
            f"{target.path!r} of {name} is {type(found).__name__} {shape}, the run was made for "
            f"{target.kind} {target.shape}. Tick it again in the tree."
        )


def _head_layer(network: Network) -> str:
    """Path of the head's layer with one row a class."""
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


def _trained(module: nn.Module) -> dict[str, Any]:
    return {name: p.detach().cpu().contiguous() for name, p in module.named_parameters() if p.requires_grad}


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
