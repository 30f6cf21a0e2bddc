"""The problems of a draft, field by field, so that a form can show them at each field. Never imports torch."""

from __future__ import annotations

from typing import Any

from sousa_engine import targets
from sousa_engine.core import config, grammar

NO_DATASET = "Enter a folder or a table."
NO_WEIGHTS = "Enter the path of a weights file or folder."


def problems(draft: grammar.Draft) -> dict[str, str]:
    """Dotted field -> a sentence about it; empty for a draft that makes a valid RunConfig.

    draft: a form's values, where lora.targets holds full paths of modules. Raises TargetError for another path,
    UnknownNameError for an unknown backbone.
    """
    model, lora = draft.get("model", {}), draft.get("lora", {})
    found: dict[str, str] = {}
    if not draft.get("data", {}).get("dataset", True):
        found["data.dataset"] = NO_DATASET
    if not model.get("weights", True):
        found["model.weights"] = NO_WEIGHTS
    outline = targets.load_outline(model.get("variant", config.ModelConfig().variant))  # pyright: ignore[reportCallIssue]
    modules: list[dict[str, Any]] = [target.model_dump() for target in outline.targets(lora.get("targets", ()))]
    return found | config.problems({**draft, "lora": {**lora, "targets": modules}})
