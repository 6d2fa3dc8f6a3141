"""The report's pages: self-contained, escaped, the same each time; and what the terminal shows."""

from __future__ import annotations

import base64
import itertools
import re
from collections import Counter
from collections.abc import Callable
from html.parser import HTMLParser
from typing import Any
from xml.etree import ElementTree

import msgspec
import pytest
import reports
import timings

from vsa_rt.bench.records.contest import Contestant
from vsa_rt.bench.records.trust import Reason
from vsa_rt.bench.report import Report
from vsa_rt.render import bench_report, pages
from vsa_rt.render.text import markdown, plain, shorten

matplotlib = pytest.importorskip("matplotlib", reason="the pages' plots are matplotlib's")
pytest.importorskip("jinja2", reason="the pages are made from jinja2 templates")

VOID = {"meta", "img", "br"}
#: All that a page is made of; none of them runs, asks for something or sends something.
TAGS = """
    html head meta title style body header main section nav footer h1 h2 h3 p ul li a span small code table thead
    tbody tr th td div figure figcaption img details summary
"""
ATTRIBUTES = "lang charset http-equiv content name class id href src alt scope role tabindex aria-label"


class Page(HTMLParser):
    """A page taken apart: its tags balance, or reading it fails."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str, str]] = []
        self.text: list[tuple[str, str]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), attrs
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, tag
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.text.append((self.open[-1] if self.open else "", data))

    def values(self, tag: str, name: str) -> list[str]:
        return [v for t, n, v in self.attributes if (t, n) == (tag, name)]

    def plots(self) -> list[bytes]:
        start = "data:image/svg+xml;base64,"
        found = self.values("img", "src")
        assert all(uri.startswith(start) for uri in found)
        return [base64.b64decode(uri.removeprefix(start), validate=True) for uri in found]


@pytest.fixture(scope="module")
def clean() -> str:
    return pages.to_html(reports.clean_report())


@pytest.fixture(scope="module")
def hostile() -> str:
    return pages.to_html(reports.hostile_report())


def headings(html: str) -> list[str]:
    return re.findall(r"<h2>(.*?)</h2>", html)


def test_the_page_holds_every_section_in_order(clean: str) -> None:
    assert headings(clean) == [
        "Green: nothing speaks against these figures",
        "What was measured",
        "Latency and throughput",
        "Against baselines",
        "Where the time goes",
        "Distance to the limit",
        "Layers",
        "Parity with the reference",
        "Accuracy against latency",
        "Resources",
        "Environment",
        "Not measured",
        "How it was measured",
    ]
    page = Page(clean)
    assert page.values("a", "href") == [f"#{name}" for name in page.values("section", "id")]
    levels = [int(t[1]) for t in re.findall(r"<(h[1-6])>", clean)]
    assert levels[0] == 1
    assert all(b - a <= 1 for a, b in itertools.pairwise(levels))


@pytest.mark.parametrize("name", ["clean", "hostile"])
def test_the_page_asks_for_nothing_and_runs_nothing(name: str, request: pytest.FixtureRequest) -> None:
    html: str = request.getfixturevalue(name)
    page = Page(html)
    assert set(page.tags) <= set(TAGS.split())
    assert {n for _, n, _ in page.attributes} <= set(ATTRIBUTES.split())
    assert all(h.startswith("#") for h in page.values("a", "href"))
    assert page.plots()
    style = html[html.index("<style>") : html.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    assert "http://" not in html
    assert "https://" not in html
    policy = page.values("meta", "content")[0]
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'unsafe-inline'")


def test_hostile_text_is_shown_as_text(hostile: str) -> None:
    page, same = Page(hostile), Page(pages.to_html(reports.hostile_report(" and so on")))
    # Not one tag more than the same report with harmless names has.
    assert page.tags == same.tags
    assert [(t, n) for t, n, _ in page.attributes] == [(t, n) for t, n, _ in same.attributes]
    shown = " ".join(text for _, text in page.text)
    assert "<script>alert('x')</script>\"'><img src=x onerror=y> $\\frac$ | `c` __d__" in shown
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\ud800-\udfff]", hostile)
    assert "\\x00\\x1b[31m\\u202e" in shown
    for alt in page.values("img", "alt"):
        assert len(alt) <= 600


def test_every_plot_is_a_picture_that_runs_and_loads_nothing(hostile: str) -> None:
    plots = Page(hostile).plots()
    # Distributions, pairs, stages, limits, layers, reliability, frontier.
    assert len(plots) == 2 + 4 + 1 + 4 + 3 + 1 + 2
    for plot in plots:
        tree = ElementTree.fromstring(plot)  # noqa: S314 - drawn a moment ago, by this project
        tags = {e.tag.rpartition("}")[2] for e in tree.iter()}
        assert tags <= {"svg", "defs", "style", "g", "path", "use", "clipPath", "rect"}
        links = [v for e in tree.iter() for k, v in e.attrib.items() if k.endswith("href")]
        assert all(link.startswith("#") for link in links)
        assert all(re.fullmatch(r"url\(#\w+\)", u) for u in re.findall(r"url\([^)]*\)", plot.decode()))
        assert b"prefers-color-scheme:dark" in plot


def test_every_plot_says_in_words_what_it_shows(clean: str) -> None:
    texts = Page(clean).values("img", "alt")
    assert len(texts) == len(Page(clean).plots())
    assert all(len(text) > 40 for text in texts)
    assert any("eager 5.01 [" in text for text in texts)


def test_the_same_report_gives_the_same_bytes(clean: str) -> None:
    with matplotlib.rc_context({"xtick.major.size": 20, "font.size": 30, "svg.hashsalt": None}):
        assert pages.to_html(reports.clean_report()) == clean
    assert pages.to_markdown(reports.clean_report()) == pages.to_markdown(reports.clean_report())


HEADLINE = "4.9 times as fast"


def top(page: str) -> str:
    """Everything above the first section."""
    return page[: page.index("What was measured\n" if page.startswith("#") else '<section id="measured">')]


@pytest.mark.parametrize("kind", [pages.to_html, pages.to_markdown])
def test_a_red_report_prints_no_headline_and_says_why(kind: Callable[[Report], str]) -> None:
    report = reports.red_report()
    assert HEADLINE in top(kind(reports.clean_report(profiles=[], contests=[], limits=[], runs=[])))
    # Even one that was put together past the validation.
    forged = msgspec.structs.replace(report.verdict, headline=f"it is {HEADLINE}")
    for red in (report, msgspec.structs.replace(report, verdict=forged, profiles=[], contests=[], limits=[])):
        page = kind(red)
        assert HEADLINE not in page
        assert "Red: do not quote a figure of this report" in top(page)
        assert "No figure is put at the top of this report, because:" in top(page)
        assert "lite1 leaves its tolerance" in top(page)
        assert not re.search(r"\d ms\b", re.sub(r"<style>.*?</style>", "", top(page), flags=re.DOTALL))


def test_amber_prints_the_headline_with_its_reasons() -> None:
    reason = Reason(level="amber", code="drift", text="the median drifts by 7 %")
    page = top(pages.to_markdown(reports.with_verdict("amber", "12 ms at batch 1", reason)))
    assert "## Amber: read the reasons before quoting a figure\n\n**12 ms at batch 1**\n" in page
    assert "- **amber**: the median drifts by 7 % (drift)" in page


def test_a_percentile_without_a_bound_is_replaced_by_the_number_of_samples_it_needs(
    capsys: pytest.CaptureFixture[str],
) -> None:
    report = reports.clean_report(runs=[timings.run(timings.BF16, 1, count=120)], contests=[], splits=[])
    latency = report.runs[0].latency
    assert latency is not None
    assert [p.value is None for p in latency.percentiles] == [False, False, True]
    row = next(line for line in pages.to_markdown(report).splitlines() if "(quick, tensors) | 1 |" in line)
    assert re.search(r"\| 5\.\d\d \(≤ 5\.\d\d\) \| 5\.\d\d \(≤ 5\.\d\d\) \| – \(needs 299 samples\) \|", row)  # noqa: RUF001 - as it is printed
    assert "needs 299 samples" in pages.to_html(report)
    bench_report(report, None, as_json=False)
    assert "needs 299" in capsys.readouterr().out


EMPTY: dict[str, dict[str, Any]] = {
    "Latency and throughput": {"runs": []},
    "Against baselines": {"contests": [], "gaps": []},
    "Where the time goes": {"splits": [], "cold": []},
    "Distance to the limit": {"limits": [], "ceilings": []},
    "Layers": {"profiles": []},
    "Parity with the reference": {"parity": []},
    "Accuracy against latency": {"points": []},
    "Resources": {"runs": [], "contests": []},
    "Not measured": {"skipped": {}},
}


@pytest.mark.parametrize("section", EMPTY)
def test_a_section_without_data_is_left_out(section: str) -> None:
    assert f"## {section}\n" in pages.to_markdown(reports.clean_report())
    page = pages.to_markdown(reports.clean_report(**EMPTY[section]))
    assert f"## {section}\n" not in page


def test_a_report_of_nothing_says_what_was_skipped() -> None:
    nothing: dict[str, Any] = {k: v for change in EMPTY.values() for k, v in change.items()}
    report = reports.clean_report(**nothing | {"skipped": {"layers": "the backend has no counters"}})
    html = pages.to_html(report)
    assert headings(html)[1:] == ["What was measured", "Environment", "Not measured", "How it was measured"]
    assert "the backend has no counters" in html
    assert Page(html).plots() == []


def test_both_sides_of_a_ratio_are_named_with_their_precision() -> None:
    lines = pages.to_markdown(reports.clean_report()).splitlines()
    ratios = [line for line in lines if line.startswith("| eager (fp32) | openvino:cpu bf16 (bf16) |")]
    assert len(ratios) == len(timings.BATCHES)
    assert re.search(r"\| 5\.01× \| 4\.99 to 5\.06 \(97\.3 %, 60 pairs\) \| slower \|", ratios[0])  # noqa: RUF001 - as it is printed


def test_an_interval_that_holds_one_is_no_difference() -> None:
    contest = timings.contest(1)
    even = msgspec.structs.replace(contest.pairings[0], ratio=1.01, low=0.99, high=1.03, different=False)
    few = msgspec.structs.replace(contest.pairings[1], pairs=3, confidence=None)
    page = pages.to_markdown(
        reports.clean_report(contests=[msgspec.structs.replace(contest, pairings=[even, few])])
    )
    assert "| 0.99 to 1.03 (97.3 %, 60 pairs) | no difference shown |" in page
    assert "(extremes: 3 pairs carry no interval) |" in page


def test_a_failed_parity_names_the_tap_and_shows_its_taps_unfolded() -> None:
    check = reports.check()
    broken = msgspec.structs.replace(check.plans[1], parity=reports.broken_parity(check.plans[1].parity))
    report = reports.clean_report(parity=[msgspec.structs.replace(check, plans=[broken])])
    page = pages.to_markdown(report)
    assert "### openvino:cpu bf16: FAILS" in page
    assert "- lite0: not a number; coffee.png" in page
    row = next(line for line in page.splitlines() if line.startswith("| lite0 | features |"))
    assert row.count("**not a number**") == 3
    html = pages.to_html(report)
    assert '<p class="title">Tap by tap</p>' in html
    assert "<summary>Tap by tap</summary>" not in html


def test_a_floor_that_cannot_be_told_apart_has_no_share() -> None:
    page = pages.to_markdown(reports.clean_report())
    assert re.search(r"\| head \| 1 \| 3\.1 \| memory, bf16 \| 0\.14 \| – \| – \|", page)  # noqa: RUF001 - as it is printed
    assert re.search(r"\| \*\*whole\*\* .*\| \*\*32 %\*\* \|", page)


def test_a_dominated_plan_says_by_which() -> None:
    page = pages.to_markdown(reports.clean_report())
    assert "| dominated (by openvino:cpu fp32, batch 8) |" in page
    assert page.count("| frontier |") == 4


def test_a_plan_that_fails_its_parity_or_has_no_quality_is_not_on_the_frontier() -> None:
    known = reports.points()[:4]
    wrong = msgspec.structs.replace(known[0], parity=False)
    blank = msgspec.structs.replace(known[2], quality=None, quality_of="", parity=None)
    report = reports.clean_report(points=[wrong, known[1], blank, known[3]])
    rows = [
        line for line in pages.to_markdown(report).splitlines() if re.match(r"\| [1-4] \| openvino", line)
    ]
    places = [row.split("|")[-2].strip() for row in rows]
    assert places == ["**fails parity**", "frontier", "unknown", "frontier"]
    texts = Page(pages.to_html(msgspec.structs.replace(report, runs=[], contests=[]))).values("img", "alt")
    assert [t for t in texts if "fails parity" in t] == [
        "accuracy and median time per image. openvino:cpu bf16: 5.20 ms, 0.9036, fails parity."
    ]


def test_markdown_shows_hostile_text_and_keeps_its_tables() -> None:
    reader = pytest.importorskip("markdown_it", reason="reads the Markdown as its readers do").MarkdownIt
    page = pages.to_markdown(reports.hostile_report())
    parser = reader("commonmark", {"html": True}).enable("table")

    def tokens(text: str) -> list[Any]:
        return [part for token in parser.parse(text) for part in (token, *(token.children or []))]

    every = tokens(page)
    text = {"text", "text_special", "inline"}
    harmless = tokens(pages.to_markdown(reports.hostile_report(" and so on")))
    assert [t.type for t in every if t.type not in text] == [t.type for t in harmless if t.type not in text]
    assert "table_open" in {t.type for t in harmless}
    shown = "".join(t.content for t in every if t.type != "inline")
    assert "<script>alert('x')</script>\"'><img src=x onerror=y> $\\frac$ | `c` __d__ # e" in shown
    # A cell too many is cut off by readers, one too few is filled up: every row has its heading's number.
    for table in re.findall(r"(?:^\|.*\n)+", page, flags=re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", row)) for row in table.splitlines()}) == 1, table


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a|b", r"a\|b"),
        ("1. first", r"1\. first"),
        ("- item", r"\- item"),
        ("---", r"--\-"),
        ("# title", r"\# title"),
        ("1.5", "1.5"),
        ("-O3", "-O3"),
        ("http://x.y", r"http:\/\/x.y"),
        ("www.x.y", r"www\.x.y"),
        ("a\n\n| b", r"a \| b"),
        ("@someone $x$ a_b", r"\@someone \$x\$ a\_b"),
    ],
)
def test_markdown_text_stays_text(text: str, shown: str) -> None:
    assert markdown(text) == shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("  a\t b\r\n c ", "a b c"),
        ("\x1b[31m\x00", "\\x1b[31m\\x00"),
        ("\ud800", "\\ud800"),
        ("a\u202eb\u2066c\ufeff", "a\\u202eb\\u2066c\\ufeff"),
        ("感情 😀", "感情 😀"),
        ("a" * 10**6, "a" * 300 + "…" + "a" * 298 + "…"),
    ],
)
def test_plain_text_shows_and_never_acts(text: str, shown: str) -> None:
    assert plain(text) == shown


@pytest.mark.parametrize(("limit", "shown"), [(9, "abcdefghi"), (8, "abcd…ghi"), (2, "a…"), (1, "…")])
def test_shortened_text_keeps_both_ends(limit: int, shown: str) -> None:
    assert shorten("abcdefghi", limit) == shown


def test_extreme_series_are_drawn_whole() -> None:
    from vsa_rt.render.plots.latency import Strip, ecdf, pair_ratios

    many = [1.0 + k / 1e5 for k in range(100_000)]
    assert len(ecdf([("many", many)])) < 60_000
    for lines in ([("one", [3.0])], [("same", [2.0] * 9)], [("zero", [0.0, 0.0])], [("tail", [1.0, 900.0])]):
        ElementTree.fromstring(ecdf(lines))  # noqa: S314 - drawn a moment ago, by this project
    wild = Strip("wild", "fp32", [0.5, 1.0, 400.0], 1.0, 0.5, 400.0)
    ElementTree.fromstring(pair_ratios([wild]))  # noqa: S314 - drawn a moment ago, by this project


def test_plots_draw_no_formula_and_mark_what_the_font_lacks() -> None:
    from vsa_rt.render.plots.canvas import label

    assert label("$\\frac$ 感\x00") == "$\\frac$ □\\x00"
    contest = timings.contest(1)
    odd = [
        Contestant(name="$\\frac$", kind="plan", precision="$", note="", samples=c.samples)
        for c in contest.contestants[:1]
    ]
    pairing = msgspec.structs.replace(contest.pairings[0], faster="$\\frac$", slower="$\\frac$")
    odd_contest = msgspec.structs.replace(contest, contestants=odd, pairings=[pairing])
    assert Page(pages.to_html(reports.clean_report(contests=[odd_contest]))).plots()
