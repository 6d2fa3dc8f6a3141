"""The Dockerfiles: pinned, without leftovers, without root, and of files that are there."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import tomllib
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
DOCKERFILES = sorted((ROOT / "docker").glob("*.Dockerfile"))
CONSTRAINTS = ROOT / "docker" / "jetpack6.constraints.txt"
pytestmark = pytest.mark.skipif(
    not (ROOT / "pyproject.toml").is_file(), reason="the repository is not around these tests"
)

#: An image's name with a tag that says a version: `:latest`, or none, changes under the reader's feet.
PINNED = re.compile(r"[\w./-]+(:(?=[\w.-]*\d)[\w.-]+|@sha256:[0-9a-f]{64})")


@dataclass
class Stage:
    """One stage of a Dockerfile.

    Attributes:
        image: What it begins as, arguments filled in.
        name: After AS; empty without.
        steps: Every instruction after FROM, arguments as written.
    """

    image: str
    name: str
    steps: list[tuple[str, str]] = field(default_factory=list)


def instructions(text: str) -> list[tuple[str, str]]:
    """The instructions, continued lines joined, comments left out."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [
        (words[0].upper(), words[1].strip())
        for line in joined.splitlines()
        if line.strip() and len(words := line.split(maxsplit=1)) == 2
    ]


def stages(text: str) -> list[Stage]:
    """The stages in their order."""
    found: list[Stage] = []
    defaults: dict[str, str] = {}
    for word, rest in instructions(text):
        if word == "ARG" and not found:
            name, _, value = rest.partition("=")
            defaults[name] = value
        elif word == "FROM":
            image, *more = rest.split()
            filled = re.sub(r"\$\{(\w+)\}", lambda match: defaults[match[1]], image)
            found.append(Stage(filled, more[1] if len(more) == 2 else ""))
        else:
            found[-1].steps.append((word, rest))
    return found


def sources(stage: Stage) -> list[str]:
    """What a stage copies out of the repository."""
    copied = [shlex.split(rest) for word, rest in stage.steps if word in ("COPY", "ADD")]
    return [source for words in copied if not words[0].startswith("--from") for source in words[:-1]]


def complaints(text: str) -> list[str]:
    """What is wrong with a Dockerfile; empty if nothing is."""
    found = stages(text)
    wrong = []
    for stage in found:
        if stage.image not in [other.name for other in found] and not PINNED.fullmatch(stage.image):
            wrong.append(f"{stage.image} is not pinned")
        for source in sources(stage):
            if re.match(r"\w+://", source):
                wrong.append(f"{source} is fetched, and nobody knows what it will be")
            elif not (ROOT / source).exists() or not (ROOT / source).resolve().is_relative_to(ROOT):
                wrong.append(f"{source} is not in the repository")
        for rest in (rest for word, rest in stage.steps if word == "RUN"):
            if "apt-get install" in rest:
                for needed in ("apt-get update", "--no-install-recommends", "rm -rf /var/lib/apt/lists/*"):
                    if needed not in rest:
                        wrong.append(f"an apt-get install without {needed}")
            if re.search(r"pip install(?!.*(--constraint|==))", rest):
                wrong.append("a pip install without versions")
            if re.search(r"(curl|wget)\b.*\|", rest):
                wrong.append("what is downloaded is run unseen")
    final = found[-1]
    users = [rest for word, rest in final.steps if word == "USER"]
    if not users or users[-1].partition(":")[0] in ("root", "0"):
        wrong.append("it runs as root")
    entries = [rest for word, rest in final.steps if word == "ENTRYPOINT"]
    if not entries or not entries[-1].startswith("["):
        wrong.append("it has no entry point that gets signals")
    else:
        program = json.loads(entries[-1])[0]
        scripts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
        if program not in scripts:
            wrong.append(f"its entry point {program} is no command of this package")
    return wrong


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.stem)
def test_a_dockerfile_is_pinned_and_clean_and_without_root(path: Path) -> None:
    assert complaints(path.read_text(encoding="utf-8")) == []


def test_there_is_one_for_each_kind_of_machine() -> None:
    assert [path.stem for path in DOCKERFILES] == ["datacenter", "jetpack6", "jetpack7"]


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.stem)
def test_the_wheel_is_built_of_every_folder_that_it_packs(path: Path) -> None:
    first, last = stages(path.read_text(encoding="utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    folders = {folder.partition("/")[0] for folder in project["tool"]["setuptools"]["package-dir"].values()}
    licences = set(project["project"]["license-files"])
    assert set(sources(first)) == folders | licences | {"pyproject.toml", "setup.py", "README.md"}
    assert ("COPY", "--from=wheel /wheels /opt/wheels") in last.steps
    assert first.name == "wheel"


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.stem)
def test_it_says_that_nobody_built_it(path: Path) -> None:
    assert "Unproven on a GPU: was never built here." in path.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("ARG UBUNTU=jammy-20251001", "ARG UBUNTU=latest", "not pinned"),
        ("ARG UBUNTU=jammy-20251001", "ARG UBUNTU=jammy", "not pinned"),
        (":${L4T_JETPACK}", "", "not pinned"),
        ("COPY src src", "COPY source src", "source is not in the repository"),
        ("COPY src src", "COPY ../shared src", "not in the repository"),
        ("COPY src src", "ADD https://example.org/src.tar src", "nobody knows"),
        ("    && rm -rf /var/lib/apt/lists/*\n", "", "apt-get install without rm"),
        ("--no-install-recommends ", "", "without --no-install-recommends"),
        ("apt-get update \\\n    && ", "", "without apt-get update"),
        ("--constraint /opt/constraints.txt ", "", "pip install without versions"),
        ("RUN useradd", "RUN curl https://example.org/x | sh && useradd", "run unseen"),
        ("USER 10001", "USER root", "as root"),
        ("USER 10001", "USER 0:0", "as root"),
        ("USER 10001\n", "", "as root"),
        ('ENTRYPOINT ["vsa-rt"]', "ENTRYPOINT vsa-rt", "no entry point"),
        ('ENTRYPOINT ["vsa-rt"]', 'ENTRYPOINT ["vsart"]', "no command of this package"),
    ],
)
def test_what_is_wrong_with_a_dockerfile_is_found(old: str, new: str, says: str) -> None:
    text = (ROOT / "docker" / "jetpack6.Dockerfile").read_text(encoding="utf-8")
    assert old in text
    assert any(says in wrong for wrong in complaints(text.replace(old, new)))


def pins() -> dict[str, str]:
    """Versions of the constraints of Python 3.10, by name."""
    lines = CONSTRAINTS.read_text(encoding="utf-8").splitlines()
    pairs = [line.split("==") for line in lines if not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in pairs}


def test_the_pins_of_python_3_10_are_what_the_package_takes() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    board = {"cuda-bindings", "cuda-core", "ml-dtypes", "onnx", "onnxruntime", "protobuf"}
    wanted = [
        *map(Requirement, [*project["dependencies"], *extras["sign"]]),
        *(r for r in map(Requirement, [*extras["export"], *extras["tensorrt"]]) if r.name in board),
    ]
    assert board <= {requirement.name for requirement in wanted}
    for requirement in wanted:
        pinned = pins().get(canonicalize_name(requirement.name))
        assert pinned is not None, f"{requirement.name} is not pinned"
        assert requirement.specifier.contains(pinned), f"{requirement} is pinned to {pinned}"


def test_the_board_of_jetpack_6_gets_bindings_of_its_cuda() -> None:
    """Its driver serves CUDA 12.6; bindings of CUDA 13 want a later one."""
    assert pins()["cuda-bindings"].startswith("12.")
