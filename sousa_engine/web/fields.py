"""Names of fields and of their choices, for the forms of Launch and Sweeps."""

from __future__ import annotations

from sousa_engine.core import config
from sousa_engine.data import synth

OWN_DATA = "my own: a folder or a table"
DATASET_CHOICES = (*synth.PRESETS, OWN_DATA)
PATH_LABEL = "Folder or table"
PATH_EXAMPLE = "/path/to/folder or clips.csv"
_NAMES = frozenset(name for name, _ in config.fields())


def dataset_choice(dataset: str) -> str:
    """The choice that stands for this data set: its name, or OWN_DATA for a path."""
    return dataset if dataset in synth.PRESETS else OWN_DATA


def dataset_title(choice: str) -> str:
    return choice if choice == OWN_DATA else f"{choice}: 40 × {synth.PRESETS[choice].clips_per_class} clips"


def title_of(name: str) -> str:
    """The label of a field; anything else unchanged."""
    return config.field_label(name) if name in _NAMES else name


def start_label(missing: list[str], ready: str) -> str:
    """The label of a Start button: `ready`, or the first three things that are missing."""
    return "Fix to start: " + ", ".join(map(title_of, missing[:3])) if missing else ready
