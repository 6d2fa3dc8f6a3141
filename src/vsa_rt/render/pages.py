"""The report as files: ``report.json``, ``report.md`` and ``report.html``, each written whole or not at all."""

from __future__ import annotations

import base64
import os
import tempfile
from collections.abc import Callable
from importlib import util
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vsa_rt.documents import write_whole
from vsa_rt.errors import UsageError, needs
from vsa_rt.render.sections import sections
from vsa_rt.render.text import markdown, plain

if TYPE_CHECKING:
    from jinja2 import Environment

    from vsa_rt.bench.report import Report
    from vsa_rt.render.blocks import Figure

MARKDOWN, HTML = "report.md", "report.html"
#: What each colour tells the reader to do.
ADVICE = {
    "green": "Green: nothing speaks against these figures",
    "amber": "Amber: read the reasons before quoting a figure",
    "red": "Red: do not quote a figure of this report",
}


def headline(report: Report) -> str | None:
    """The sentence with the figure that matters; none under a red verdict, whatever the report holds."""
    return None if report.verdict.level == "red" else report.verdict.headline


def _template_source(name: str) -> str | None:
    found = files("vsa_rt.render").joinpath("templates", name)
    return found.read_text(encoding="utf-8") if found.is_file() else None


def _jinja(shown: Callable[[str], str]) -> Environment:
    """An environment in which every text that a template prints goes through ``shown``, without asking for it.

    Args:
        shown: Gives text, which is then escaped for HTML, or ``Markup``, which stays as it is.
    """
    with needs("bench"):
        from jinja2 import Environment, FunctionLoader, StrictUndefined
        from markupsafe import Markup

    def finalize(value: Any) -> Any:
        return shown(value) if isinstance(value, str) and not isinstance(value, Markup) else value

    return Environment(
        loader=FunctionLoader(_template_source),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=finalize,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def _data_uri(figure: Figure) -> str:
    from markupsafe import Markup

    # Base64 has no character that means anything in HTML; the text would be shortened otherwise.
    return Markup("data:image/svg+xml;base64," + base64.b64encode(figure.draw()).decode("ascii"))  # noqa: S704 - base64


def _context(report: Report) -> dict[str, Any]:
    machine = report.environment
    return {
        "report": report,
        "bundles": ", ".join(b.name for b in report.bundles),
        "day": report.created.replace("T", " ").replace("Z", " UTC"),
        "machine": f"{machine.processor}, {machine.cores} core{'s' if machine.cores != 1 else ''}",
        "level": report.verdict.level,
        "advice": ADVICE[report.verdict.level],
        "headline": headline(report),
        "causes": [r for r in report.verdict.reasons if r.level != "green"],
        "facts": [r for r in report.verdict.reasons if r.level == "green"],
        "sections": sections(report),
    }


def to_html(report: Report) -> str:
    """One page that needs nothing beside it: styles inside, plots as data, no script, no request.

    Args:
        report: Its texts may come from anybody.

    Returns:
        HTML; the same for the same report.

    Raises:
        EnvironmentUnusable: jinja2 or matplotlib is not installed.
    """
    template = _jinja(plain).get_template("report.html.j2")
    return template.render(**_context(report), data_uri=_data_uri)


def to_markdown(report: Report) -> str:
    """The page's text and tables as Markdown, without plots.

    Args:
        report: Its texts may come from anybody.

    Raises:
        EnvironmentUnusable: jinja2 is not installed.
    """
    with needs("bench"):
        from markupsafe import Markup

    def shown(text: str) -> str:
        return Markup(markdown(text))  # noqa: S704 - Markdown has its own escapes, and HTML's would show in it

    return _jinja(shown).get_template("report.md.j2").render(**_context(report))


def require_pages(folder: Path) -> None:
    """Check, before minutes of measuring, that pages can be made here and written there.

    Args:
        folder: Of the report; it need not be there, and is not made.

    Raises:
        EnvironmentUnusable: jinja2 or matplotlib is not installed.
        UsageError: The folder cannot be written.
    """
    try:
        whole = folder.absolute()
        there = next(path for path in (whole, *whole.parents) if os.path.lexists(path))
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise UsageError(
            f"{folder}: the report cannot be written: {error.strerror}; name another folder"
        ) from error
    with needs("bench"):
        for name in ("jinja2", "matplotlib"):
            if util.find_spec(name) is None:
                raise ModuleNotFoundError(name, name=name)


def write_report(report: Report, folder: Path) -> list[Path]:
    """Write the report's files.

    ``report.json`` comes first: should a page fail, the measurements are kept, and no page of another report stays
    beside them.

    Args:
        report: What was measured.
        folder: Where to; it is made if it is not there.

    Returns:
        The files: JSON, Markdown, HTML.

    Raises:
        UsageError: The folder cannot be written.
        EnvironmentUnusable: jinja2 or matplotlib is not installed.
    """
    from vsa_rt.bench.report import FILE_NAME, report_to_json

    written = [folder / name for name in (FILE_NAME, MARKDOWN, HTML)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(written[0], report_to_json(report))
        for page in written[1:]:
            page.unlink(missing_ok=True)
        write_whole(written[1], to_markdown(report).encode("utf-8"))
        write_whole(written[2], to_html(report).encode("utf-8"))
    except OSError as error:
        raise UsageError(
            f"{folder}: the report cannot be written: {error.strerror}; name another folder"
        ) from error
    return written
