"""What a page that is visited without a browser says, and clicks on it."""

import json


def checked(app):
    """The app, which ran without an exception."""
    assert not app.exception, app.exception
    return app


def words(app) -> str:
    """Everything the page says, in one string."""
    elements = [*app.title, *app.subheader, *app.markdown, *app.caption, *app.info, *app.warning, *app.error]
    blocks = [given["text"] for given in components(app) if given.keys() == {"text"}]
    return "\n".join([*(str(e.value) for e in elements), *blocks])


def chart(app):
    """What the live chart was given."""
    (given,) = [given for given in components(app) if given.keys() != {"text"}]
    return given


def components(app):
    """What each component of the page was given; some are given nothing."""
    return [json.loads(component.proto.json) for component in app.get("bidi_component") if component.proto.json]


def table(app):
    """The rows of the list of runs as the browser gets them."""
    given = chart(app)
    return [dict(zip(given["fields"], row, strict=True)) for row in given["rows"]]


def ids(app):
    """The ids of the listed runs, in their order."""
    return [row["id"] for row in table(app)]


def click(app, key):
    """Click the button of this key; the page then ran."""
    return checked(app.button(key=key).click().run())
