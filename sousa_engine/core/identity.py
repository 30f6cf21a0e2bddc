"""What a run actually reads: two configs with the same key give the same network for the same seed.

Serves the plan of a sweep, its sampler, the settings of a comparison and "this has been trained already".
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from sousa_engine.core import config as configs
from sousa_engine.core.config import RunConfig
from sousa_engine.core.methods import METHODS

_ABOUT_THE_RUN = {"name", "device", "wandb.mode", "wandb.project", "lora.target_set", "data.strict"}
_OF_THE_DATA = {
    "data.dataset", "data.valid_fraction", "data.test_fraction", "data.split_seed", "data.shortest_s", "data.table",
    "data.level", "data.path_column", "data.label_column", "data.split_column", "data.group_column",
}  # fmt: skip
_OF_A_METHOD = {"r", "alpha", "dropout", "rank_pattern", "plus_ratio"}


def key(config: RunConfig, data: str | None = None) -> str:
    """32 hex digits, equal for configs of one setting. The seed is not part of a setting. data: see `read_by`."""
    text = json.dumps(read_by(config, data), sort_keys=True, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def read_by(config: RunConfig, data: str | None = None) -> dict[str, Any]:
    """Dotted field -> value, of all fields that shape the trained network, without the seed.

    Targets count by their paths, in any order. data: the identity of the content of the clips and their splits; it
    takes the place of the fields that select them.
    """
    left_out = unread(config) | {"seed"} | (_OF_THE_DATA if data else set())
    found = {name: configs.value_of(config, name) for name, _ in configs.fields() if name not in left_out}
    found["lora.targets"] = sorted(target.path for target in config.lora.targets)
    if "lora.rank_pattern" in found:
        found["lora.rank_pattern"] = sorted(pair for pair in config.lora.rank_pattern if pair[1] != config.lora.r)
    return found | ({"data": data} if data else {})


def unread(config: RunConfig) -> set[str]:
    """Dotted fields that have no effect on the trained network of this config: IA3 has no rank, a probe no adapter."""
    lora, method = config.lora, METHODS[config.lora.method]
    adapts = method.takes_targets and (bool(lora.targets) or lora.head == "lora")
    found = _ABOUT_THE_RUN | {f"lora.{name}" for name in _OF_A_METHOD - set(method.settings if adapts else ())}
    if method.takes_targets and not adapts:
        found |= {"lora.method", "training.lr"}  # only the head trains
    if lora.head == "freeze":
        found.add("training.head_lr")
    return found
