"""A report as one self-contained HTML file with text, charts and plotly.js; it makes no network requests."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import jinja2
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from sousa_engine.analysis.charts import template
from sousa_engine.report.figures import figures
from sousa_engine.report.read import Report
from sousa_engine.report.sections import caveats, counted, lead, made, sections, setting_name

_FOLDER = Path(__file__).parent


def html(report: Report) -> str:
    """The complete document, about 5 MB, most of it plotly.js. All names are escaped."""
    found = sections(report)
    charts = figures(report, [name for section in found for name in section.charts])
    return _template().render(
        report=report,
        sections=found,
        lead=lead(report),
        counted=counted(report),
        made=made(report),
        caveats=caveats(report),
        legend=[(template.series(i), setting_name(row)) for i, row in enumerate(report.shown)],
        charts=charts,
        figures={name: _json(chart.figure) for name, chart in charts.items()},
        # These texts come from plotly and from this package; neither contains a closing script tag.
        plotly=Markup(get_plotlyjs()) if charts else "",
        style=Markup((_FOLDER / "page.css").read_text()),
        script=Markup((_FOLDER / "page.js").read_text()),
    )


def _json(figure) -> dict:
    """The figure without plotly's template: page.js applies the light or dark theme."""
    found = json.loads(figure.to_json())
    found["layout"].pop("template", None)
    return found


@cache
def _template() -> jinja2.Template:
    loader = jinja2.FileSystemLoader(_FOLDER)
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("page.html")
