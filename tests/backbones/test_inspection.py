"""Weights are checked before a run starts as they are at import, once for each state of a file."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

from sousa_engine import backbones
from sousa_engine.backbones import inspection
from sousa_engine.core import grammar
from sousa_engine.runs import preflight, prepare

MINI = backbones.variant("ast-mini")


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "mine.safetensors"
    save_file(backbones.build("ast-mini", num_classes=7).state_dict(), path)
    return path


def test_a_file_that_fits_has_no_problem_and_another_family_is_named(weights, workspace):
    assert inspection.problem(MINI, weights, workspace) == ""
    assert "does not fit mn04_as" in inspection.problem(backbones.variant("mn04_as"), weights, workspace)


def test_a_file_is_read_again_only_after_it_has_changed(weights, workspace, monkeypatch):
    read = []
    monkeypatch.setattr(inspection.pretrained, "check_fits", lambda file, *_: read.append(file))
    for _ in range(3):
        assert inspection.problem(MINI, weights, workspace) == ""
    assert len(read) == 1
    weights.write_bytes(b"x")
    inspection.problem(MINI, weights, workspace)
    assert len(read) == 2


def test_without_torch_a_separate_process_answers(weights, workspace, monkeypatch):
    monkeypatch.delitem(sys.modules, "torch")
    asked = []

    def run(command, **_):
        asked.append(command)
        return subprocess.CompletedProcess(command, code, json.dumps(said) if said else "", "Killed\n")

    monkeypatch.setattr(subprocess, "run", run)
    code, said = 1, None
    assert inspection.problem(MINI, weights, workspace) == f"Checking {weights} failed: Killed."
    code, said = 0, {"problem": "It does not fit."}
    for _ in range(2):  # a failure is not kept, an answer is
        assert inspection.problem(MINI, weights, workspace) == "It does not fit."
    assert len(asked) == 2 and asked[0][1:] == ["-m", "sousa_engine.backbones.inspection", "ast-mini", str(weights)]


def test_preflight_refuses_what_an_import_would_refuse(tmp_path, workspace):
    state = backbones.build("ast-mini", num_classes=7).state_dict()
    bad = {**state, "audio_spectrogram_transformer.layernorm.bias": torch.full((192,), torch.nan)}
    torch.save(bad, tmp_path / "nan.pth")
    torch.save(backbones.build("mn04_as", num_classes=7).state_dict(), tmp_path / "other.pth")
    (tmp_path / "text.pth").write_text("no weights")
    says = {"nan.pth": "layernorm.bias are NaN", "other.pth": "does not fit ast-mini", "text.pth": "it holds text"}
    for name, part in says.items():
        draft = grammar.parse(["model=ast-mini", "data=micro", f"model.weights={tmp_path / name}"])
        (error,) = preflight.preflight(prepare.prepare(draft).config, workspace).errors
        assert error.title == "Weights" and part in error.detail
