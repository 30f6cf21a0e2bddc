"""The door between pages: ticks are taken over once by each page, drafts once."""

from streamlit.testing.v1 import AppTest

from sousa_engine.core.config import LoraConfig, ModelConfig, RunConfig
from sousa_engine.targets import load_outline
from sousa_engine.web.handover import Ticks


def pages():
    import streamlit as st

    from sousa_engine.core.config import RunConfig
    from sousa_engine.web import handover
    from sousa_engine.web.handover import Ticks

    def ticks(variant="ast-mini"):
        return Ticks(variant=variant, paths=("a",), r=8, head="train", method="lora")

    seen = st.session_state["seen"] = {}
    assert handover.held_ticks("ast-mini") is None and handover.new_ticks("launch") is None
    handover.leave_ticks(ticks(), seen_by="backbones")
    seen["left by backbones"] = [handover.new_ticks(page) is not None for page in ("backbones", "launch", "launch")]
    handover.leave_ticks(ticks())
    seen["equal, left again"] = [handover.new_ticks(page) is not None for page in ("backbones", "launch")]
    handover.leave_ticks(ticks("ast-base"))
    seen["another backbone"] = [
        handover.new_ticks("backbones", variant) is not None for variant in ("ast-mini", "ast-base", "ast-base")
    ]
    seen["held"] = [handover.held_ticks(variant) is not None for variant in ("ast-mini", "ast-base")]
    handover.leave_draft(RunConfig(seed=3))
    seen["draft"] = [draft.settings.seed if draft else None for draft in (handover.take_draft(), handover.take_draft())]


def test_ticks_are_new_once_for_each_page_and_a_draft_is_taken_once():
    app = AppTest.from_function(pages, default_timeout=60).run()
    assert not app.exception
    assert app.session_state["seen"] == {
        "left by backbones": [False, True, False],
        "equal, left again": [True, True],
        "another backbone": [False, True, False],
        "held": [False, True],
        "draft": [3, None],
    }


def test_ticks_of_a_run_are_its_targets_with_their_settings():
    outline = load_outline("ast-mini")
    paths = [node.path for node in outline.nodes if node.name == "q_proj"]
    lora = LoraConfig(
        method="rslora", targets=outline.targets(paths), rank_pattern=((paths[0], 2),), r=4, head="lora", target_set="q"
    )
    config = RunConfig(model=ModelConfig(variant="ast-mini"), lora=lora)
    assert Ticks.of(config) == Ticks(
        variant="ast-mini", paths=tuple(paths), ranks={paths[0]: 2}, r=4, head="lora", method="rslora", name="q"
    )
