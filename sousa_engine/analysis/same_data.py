"""Whether runs have the same data: the same sounds with the same labels, wherever their files are.

Runs of earlier versions recorded no contents. They are compared by what their settings say of the data set and by the
names of the clips, and `Data.is_known` tells so.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sousa_engine.core import config as configs
from sousa_engine.core import contents
from sousa_engine.core.config import RunConfig
from sousa_engine.core.records import Prediction, Run
from sousa_engine.data import synth

FIELDS = ("data.dataset", "data.clip_s", "data.valid_fraction", "data.test_fraction", "data.split_seed")


@dataclass(frozen=True, kw_only=True)
class Data:
    """The data of a run, compared with other runs. test: equal for the same test clips; whole: for all splits.

    contents: see core.contents; empty if they are not known and no compared run tells them. is_known: whether the run
    recorded them, or was trained on an embedded set, whose name says what is in it.
    """

    test: str = ""
    whole: str = ""
    contents: Mapping[str, Any] = field(default_factory=dict)
    is_known: bool = True


def of_runs(runs: Sequence[Run]) -> tuple[Data, ...]:
    """The data of each run. One without recorded contents is taken to have those of the runs with the same settings
    of data, if they agree."""
    recorded = [contents.of_facts(run.facts) for run in runs]
    as_written = [_written(run.config) for run in runs]
    known: dict[str, dict[str, Mapping[str, Any]]] = {}
    for found, written in zip(recorded, as_written, strict=True):
        if found:
            known.setdefault(written, {})[_key(found, contents.SPLITS)] = found
    datas = []
    for run, found, written in zip(runs, recorded, as_written, strict=True):
        others = list(known.get(written, {}).values())
        taken = found or (others[0] if len(others) == 1 else {})
        datas.append(
            Data(
                test=_key(taken, ("test",)) if taken else written,
                whole=_key(taken, contents.SPLITS) if taken else written,
                contents=taken,
                is_known=bool(found) or run.config.data.dataset in synth.PRESETS,
            )
        )
    return tuple(datas)


def change(first: Data, second: Data, of_first: Sequence[Prediction] = (), of_second: Sequence[Prediction] = ()) -> str:
    """How the second run's data differ from the first's, as a clause: `the test split differs: 6 clips changed, 0
    added, 0 missing`. of_first, of_second: their predictions on test, if there are any."""
    if not first.contents or not second.contents:
        return "the settings name another data set, split or clip length, and its contents are not known"
    counted = changed_clips(of_first, of_second)
    said = contents.change(first.contents, second.contents, ("train", "valid") if counted else contents.SPLITS)
    if counted is None or first.contents.get("clip_s") != second.contents.get("clip_s"):
        return said
    changed, added, missing = counted
    of_test = f"the test split differs: {_clips(changed)} changed, {added:,} added, {missing:,} missing"
    return " and ".join(filter(None, [said, of_test if any(counted) else ""]))


def changed_clips(first: Sequence[Prediction], second: Sequence[Prediction]) -> tuple[int, int, int] | None:
    """(clips whose sound or label changed, added clips, missing clips) in the second; None if a sound is not known.

    A clip that only has another name has not changed.
    """
    if not first or not second or not all(p.content for p in (*first, *second)):
        return None
    ours, theirs = ({key: p.clip_id for key, p in found.items()} for found in keyed([first, second]))
    gone = {ours[key] for key in ours.keys() - theirs.keys()}
    new = {theirs[key] for key in theirs.keys() - ours.keys()}
    return len(gone & new), len(new - gone), len(gone - new)


def keyed(runs: Sequence[Sequence[Prediction]]) -> list[dict[str, Prediction]]:
    """For each run, key -> prediction. Equal keys are the same clip: the same sound with the same label.

    Equal clips of a run are numbered. Where a run has no recorded sounds, its clips are told by name and label: as
    those of the other runs, if all of them have the same names there, of most of them if these differ in their sounds.
    """
    found = [_by_content(run) for run in runs]
    often = Counter(frozenset(one) for one in found if one)
    by_names: dict[frozenset[tuple[str, str]], dict[tuple[str, str], str]] = {}
    for one in sorted(filter(None, found), key=lambda one: -often[frozenset(one)]):
        names = {(p.clip_id, p.label): key for key, p in one.items()}
        by_names.setdefault(frozenset(names), names)
    keys = []
    for run, one in zip(runs, found, strict=True):
        table = by_names.get(frozenset((p.clip_id, p.label) for p in run), {})
        keys.append(one or {table.get((p.clip_id, p.label), f"{p.clip_id}\n{p.label}"): p for p in run})
    return keys


def _by_content(run: Sequence[Prediction]) -> dict[str, Prediction]:
    """{} if any sound is not known."""
    if not all(p.content for p in run):
        return {}
    seen: Counter[str] = Counter()
    found = {}
    for p in sorted(run, key=lambda p: p.clip_id):
        key = f"{p.content} {p.label}"
        seen[key] += 1
        found[f"{key}\n{seen[key]}"] = p
    return found


def _key(found: Mapping[str, Any], splits: Sequence[str]) -> str:
    return json.dumps([found.get("version"), found["clip_s"], *(found[split] for split in splits)])


def _written(config: RunConfig) -> str:
    return json.dumps([configs.value_of(config, name) for name in FIELDS])


def _clips(count: int) -> str:
    return "1 clip" if count == 1 else f"{count:,} clips"
