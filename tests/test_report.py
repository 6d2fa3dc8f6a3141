"""The report as a document, as files and on a terminal: whole, readable, refused where nobody could rely on it."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import reports

from vsa_rt.bench.report import Report, read_report, report_from_json, report_to_json
from vsa_rt.errors import UsageError, VsaError
from vsa_rt.render import bench_report, pages, write_report

pytest.importorskip("jinja2", reason="the pages are made from jinja2 templates")

Change = Callable[[dict[str, Any]], None]


def changed(change: Change) -> bytes:
    raw = json.loads(report_to_json(reports.clean_report()))
    change(raw)
    return json.dumps(raw).encode()


@pytest.mark.parametrize("made", [reports.clean_report, reports.red_report, reports.hostile_report])
def test_a_report_is_read_back_as_it_was_written(made: Callable[[], Any]) -> None:
    report = made()
    assert report_from_json(report_to_json(report), "it") == report


def test_the_document_is_indented_json_with_its_version_first() -> None:
    text = report_to_json(reports.clean_report()).decode()
    assert text.startswith('{\n "schema": 1,\n "kind": "bench",\n')
    assert text.endswith("}\n")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda raw: raw.update(extra=1), "extra"),
        (lambda raw: raw["runs"][0].update(extra=1), r"extra.*runs"),
        (lambda raw: raw["parity"][0]["plans"][0]["parity"].pop("taps"), r"taps.*parity"),
        (lambda raw: raw.update(schema=99), "'schema': 99"),
        (lambda raw: raw.update(kind="bundle"), "'kind': 'bundle'"),
        (lambda raw: raw["runs"][0].update(scenario="racing"), "racing"),
        (lambda raw: raw["verdict"].update(level="red"), "red verdict with a headline"),
        (lambda raw: raw["runs"][0].update(plan="another"), "run of an unknown plan 'another'"),
        (lambda raw: raw["limits"][0].update(plan="another"), "limits of an unknown plan 'another'"),
        (lambda raw: raw["runs"][0]["latency"].update(warm_up=10**6), "warm-up of 1000000 among"),
        (lambda raw: raw["contests"][0]["contestants"][0]["samples"].pop(), "different numbers of rounds"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_document_that_cannot_be_relied_on_is_refused(change: Change, says: str) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        report_from_json(changed(change), "old/report.json")
    assert str(caught.value).startswith("old/report.json: ")
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("data", [b"", b"{", b"[1]", b'"bench"', b"\xff", b"[" * 100_000])
def test_what_is_no_report_is_refused(data: bytes) -> None:
    with pytest.raises(UsageError, match=r"^it: "):
        report_from_json(data, "it")


def test_an_output_that_is_not_a_number_survives_the_way_through_json() -> None:
    report = reports.clean_report()
    check = report.parity[0]
    broken = msgspec.structs.replace(check.plans[1], parity=reports.broken_parity(check.plans[1].parity))
    assert broken.parity.taps[1].relative == math.inf
    plans = [check.plans[0], broken, *check.plans[2:]]
    written = reports.clean_report(parity=[msgspec.structs.replace(check, plans=plans)])
    found = report_from_json(report_to_json(written), "it").parity[0].plans[1].parity
    assert found.taps[1].relative is None
    assert found.reasons == ["lite0: not a number; coffee.png"]


def test_a_report_is_found_by_its_file_or_its_folder(tmp_path: Path) -> None:
    report = reports.clean_report()
    (tmp_path / "report.json").write_bytes(report_to_json(report))
    assert read_report(tmp_path) == report
    assert read_report(tmp_path / "report.json") == report
    with pytest.raises(UsageError, match=r"report\.json"):
        read_report(tmp_path / "elsewhere")


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing the plots takes seconds and is another test's business (``test_pages.py``)."""
    monkeypatch.setattr(pages, "to_html", lambda report: f"<!DOCTYPE html>{report.verdict.level}")


@pytest.mark.usefixtures("drawn")
def test_the_files_lie_in_the_folder_and_nothing_else_does(tmp_path: Path) -> None:
    report = reports.clean_report()
    folder = tmp_path / "new" / "folder"
    written = write_report(report, folder)
    assert [p.name for p in written] == ["report.json", "report.md", "report.html"]
    assert sorted(os.listdir(folder)) == ["report.html", "report.json", "report.md"]
    assert read_report(folder) == report
    assert (folder / "report.md").read_text(encoding="utf-8") == pages.to_markdown(report)
    assert write_report(reports.red_report(), folder) == written
    assert read_report(folder) == reports.red_report()
    assert (folder / "report.html").read_text(encoding="utf-8") == "<!DOCTYPE html>red"


@pytest.mark.usefixtures("drawn")
def test_a_page_that_fails_keeps_the_measurements_and_leaves_no_old_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_report(reports.clean_report(), tmp_path)

    def fails(report: Report) -> str:
        raise VsaError("matplotlib is not installed")

    monkeypatch.setattr(pages, "to_html", fails)
    with pytest.raises(VsaError, match="matplotlib"):
        write_report(reports.red_report(), tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["report.json", "report.md"]
    assert read_report(tmp_path) == reports.red_report()


@pytest.mark.usefixtures("drawn")
def test_a_write_that_breaks_off_leaves_the_old_file_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_report(reports.clean_report(), tmp_path)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UsageError, match="No space left on device; name another folder"):
        write_report(reports.red_report(), tmp_path)
    assert read_report(tmp_path) == reports.clean_report()
    assert sorted(os.listdir(tmp_path)) == ["report.html", "report.json", "report.md"]


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UsageError, match="file"):
        write_report(reports.clean_report(), tmp_path / "file" / "folder")


def test_as_json_stdout_is_the_report_alone(capsys: pytest.CaptureFixture[str]) -> None:
    report = reports.clean_report()
    bench_report(report, Path("somewhere"), as_json=True)
    captured = capsys.readouterr()
    assert captured.out == report_to_json(report).decode()
    assert captured.err == ""


def test_the_terminal_shows_verdict_runs_ratios_limits_parity_and_files(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    bench_report(reports.clean_report(), Path("somewhere"), as_json=False)
    out = capsys.readouterr().out
    assert out.startswith(
        "Green: nothing speaks against these figures\nopenvino:cpu bf16 at batch 1 takes 5.3 ms"
    )
    assert re.search(r"openvino:cpu bf16 +quick +1 +5\.32 ≤ 5\.33 +5\.75 ≤ 5\.83 +192\.3", out)
    assert re.search(r"eager fp32 +openvino:cpu bf16 +1 +5\.01. +4\.99 to 5\.06 \(97\.3 %\)", out)
    assert re.search(r"openvino:cpu bf16 +1 +1\.65 +5\.20 +32 % +memory", out)
    assert re.search(r"quickstart +openvino:cpu bf16 +holds +704 +2 +2", out)
    assert "not measured: server: not asked for" in out
    assert out.endswith("somewhere/report.html\nsomewhere/report.md\nsomewhere/report.json\n")


def test_the_terminal_shows_no_headline_under_red(capsys: pytest.CaptureFixture[str]) -> None:
    red = reports.red_report()
    forged = msgspec.structs.replace(red.verdict, headline="it is 4.9 times as fast")
    bench_report(msgspec.structs.replace(red, verdict=forged), None, as_json=False)
    out = capsys.readouterr().out
    assert out.startswith("Red: do not quote a figure of this report\n  red openvino:cpu bf16: lite1 leaves")
    assert "4.9 times as fast" not in out


def test_hostile_text_does_nothing_to_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    bench_report(reports.hostile_report(), Path("some[bold]where\x1b[2J"), as_json=False)
    out = capsys.readouterr().out
    assert "some[bold]where\\x1b[2J/report.json" in out
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e]", out)
