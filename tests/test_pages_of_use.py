"""Pages that lead through commands name commands, options and files that there are."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = ["jetson.md", "trust.md"]
pytestmark = pytest.mark.skipif(
    not (ROOT / "pyproject.toml").is_file(), reason="the repository is not around these tests"
)


def commands(text: str) -> list[list[str]]:
    """The words after ``vsa-rt``, and after a container's name, of every line of a code block."""
    blocks = re.findall(r"^```\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = [line.partition(" # ")[0] for block in blocks for line in block.splitlines()]
    found = [re.search(r"^(?:.* )?vsa-rt(?::\w+)? (.+)", line) for line in lines]
    return [shlex.split(match[1]) for match in found if match and not line_builds(match[0])]


def line_builds(line: str) -> bool:
    """Whether a line makes an image, or installs the package: its words are not those of a command."""
    return line.startswith(("docker build", "pip "))


def mistakes(text: str, folder: Path) -> list[str]:
    """What a page names and is not there."""
    import typer.main

    from vsa_rt.cli import app

    group = typer.main.get_command(app)
    wrong = []
    for name, *words in commands(text):
        made = group.get_command(None, name)  # type: ignore[attr-defined]
        if made is None:
            wrong.append(f"no command {name}")
            continue
        options = {text: parameter for parameter in made.params for text in parameter.opts}
        for word in words:
            if word.startswith("-") and word not in options:
                wrong.append(f"{name} has no option {word}")
    for path in re.findall(r"\]\(([\w./-]+\.md)", text):
        if not (folder / path).is_file():
            wrong.append(f"no page {path}")
    for path in re.findall(r"\b(?:docker|tests)/[\w.]+", text):
        if not (ROOT / path).is_file():
            wrong.append(f"no file {path}")
    return wrong


@pytest.mark.parametrize("page", PAGES)
def test_a_page_names_what_is_there(page: str) -> None:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    assert len(commands(text)) >= 4
    assert mistakes(text, ROOT / "docs") == []


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("```\nvsa-rt measure q.bundle\n```\n", "no command measure"),
        ("```\nvsa-rt bench q.bundle --twice   # --seconds\n```\n", "no option --twice"),
        ("```\ndocker run --rm vsa-rt:jetpack6 run q.bundle --fast\n```\n", "run has no option --fast"),
        ("see [that](absent.md)", "no page absent.md"),
        ("build docker/absent.Dockerfile", "no file docker/absent.Dockerfile"),
    ],
)
def test_what_is_not_there_is_found(text: str, says: str) -> None:
    assert any(says in wrong for wrong in mistakes(text, ROOT / "docs"))
