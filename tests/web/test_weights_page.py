"""Weights on the Backbones page, without a browser: what it shows, what it starts, what it finds again."""

import pytest
from streamlit.testing.v1 import AppTest

from sousa_engine import backbones
from sousa_engine.backbones import downloads, pretrained
from sousa_engine.core.errors import WeightsError
from sousa_engine.runs import background
from sousa_engine.workspace import PROJECT_ROOT, intake

MAIN = PROJECT_ROOT / "sousa_engine" / "web" / "main.py"


@pytest.fixture
def started(monkeypatch):
    """The words of every process that the page would have started."""
    words = []
    monkeypatch.setattr(
        background, "take_in_weights", lambda workspace, variant, w: words.append((variant.name, *w)) or True
    )
    return words


@pytest.fixture
def open_page(workspace, monkeypatch, started):
    monkeypatch.setenv("SOUSA_WORKSPACE", str(workspace.root))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def open_at(variant):
        app = AppTest.from_file(str(MAIN), default_timeout=60)
        app.query_params["variant"] = variant
        app.switch_page(str(PROJECT_ROOT / "pages" / "backbones.py")).run()
        assert not app.exception
        return app

    return open_at


@pytest.fixture
def folder(workspace):
    return pretrained.intake_folder(backbones.variant("ast-base"), workspace)


def text(page):
    return "\n".join(m.value.replace("\\", "") for m in page.markdown)


def buttons(page):
    return {button.label: button for button in page.button}


def file_field(page):
    return next(field for field in page.text_input if field.label == "A weights file on this machine")


def test_what_would_be_downloaded_is_said_before_it_is(open_page):
    published = backbones.variant("ast-base").download
    page = open_page("ast-base")
    shown = text(page)
    for part in ("Nothing yet.", "346.4 MB", "BSD-3-Clause", published.sha256, published.page, published.note):
        assert part in shown
    assert "Download" in buttons(page) and "Stop" not in buttons(page)


def test_a_file_without_a_link_can_only_be_imported(open_page):
    page = open_page("htsat-audioset")
    assert "drive.google.com, by hand" in text(page)
    assert "Download" not in buttons(page) and file_field(page).placeholder == "/path/to/HTSAT_AudioSet_Saved_1.ckpt"


def test_embedded_weights_are_shown_with_their_sha256_and_nothing_is_offered(open_page):
    sha256 = downloads.sha256(pretrained.EMBEDDED / "ast-mini" / "model.safetensors")
    page = open_page("ast-mini")
    assert "Nothing: these weights come with this package." in text(page)
    assert sha256 in text(page)
    assert not {"Download", "Download again", "Check and import"} & set(buttons(page))


def test_the_overview_has_every_backbone(open_page):
    table = next(frame.value for frame in open_page("ast-base").dataframe if "Licence" in frame.value)
    assert list(table["Backbone"]) == list(backbones.VARIANTS)
    assert set(table["Here"]) >= {"embedded", "not here"}


def test_download_starts_a_process_of_its_own(open_page, started):
    buttons(open_page("ast-base"))["Download"].click().run()
    assert started == [("ast-base", "fetch", "ast-base")]


def test_a_file_is_imported_for_this_backbone_by_its_whole_path(open_page, started):
    page = open_page("ast-base")
    for wrong in ("", "net.safetensors"):
        file_field(page).set_value(wrong)
        buttons(page)["Check and import"].click().run()
        assert "absolute path" in page.error[0].value
    assert started == []
    file_field(page).set_value("  /data/my net.safetensors ")
    buttons(page)["Check and import"].click().run()
    assert started == [("ast-base", "import", "/data/my net.safetensors", "--as", "ast-base")]


def test_a_running_download_is_found_again_by_any_page_and_can_be_stopped(open_page, folder):
    with pytest.raises(WeightsError, match="Stopped"), intake.taking_in(folder) as tell:
        tell("downloading", 100_000_000, 346_404_948)
        page = open_page("ast-base")
        assert page.get("progress")[0].proto.text.startswith("Downloading 100.0 MB of 346.4 MB")
        assert "Download" not in buttons(page)
        buttons(page)["Stop"].click().run()
        tell("checking", 0, None)
    page.run()
    assert page.info[0].value.endswith(intake.STOPPED) and "Stop" not in buttons(page)
    assert "Download" in buttons(page)


def test_the_reason_of_a_refusal_is_shown_as_it_is_and_not_as_markdown(open_page, folder):
    with pytest.raises(WeightsError), intake.taking_in(folder):
        raise WeightsError("x_y_z.ckpt holds *more* than tensors.")
    page = open_page("ast-base")
    assert page.error[0].value.endswith(r"x\_y\_z.ckpt holds \*more\* than tensors.")
    with intake.taking_in(folder):
        pass
    assert not page.run().error


def test_a_workspace_that_cannot_be_written_to_is_told(open_page, monkeypatch):
    def refuse(*_):
        raise WeightsError("runs/.weights cannot be written to: Read-only file system.")

    monkeypatch.setattr(background, "take_in_weights", refuse)
    page = open_page("ast-base")
    buttons(page)["Download"].click().run()
    assert not page.exception and "cannot be written to" in page.error[0].value
