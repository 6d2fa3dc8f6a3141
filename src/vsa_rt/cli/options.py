"""What the command line's options are called and mean; several commands share them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vsa_rt.budget import Budget
from vsa_rt.contracts import Precision, Resample, Target
from vsa_rt.errors import UsageError
from vsa_rt.label_sets import LABEL_SETS
from vsa_rt.signature import TRUST

if TYPE_CHECKING:
    from vsa_rt.runtime.sampling import Sample


class Format(str, Enum):
    """How ``run`` prints."""

    TABLE = "table"
    JSONL = "jsonl"
    CSV = "csv"


class BuildPrecision(str, Enum):
    """What ``--precision`` takes."""

    AUTO = "auto"
    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"
    INT8 = "int8"


class SplitKind(str, Enum):
    """What ``fit --split`` takes."""

    FOLDS = "folds"
    RANDOM = "random"


AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout and nothing else.")]
Data = Annotated[
    Path | None,
    typer.Option(help="Photographs for the gates; by default those that the export extra's packages ship."),
]
BudgetText = Annotated[
    str | None,
    typer.Option(
        "--budget",
        metavar="CLAUSE=VALUE,...",
        help=f"What lowered engines may change, such as flips=0.5%,kl=0.005; default {Budget()}.",
    ),
]
Calib = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="Photographs on which int8's ranges are measured; without them nothing becomes int8.",
    ),
]
CalibMethod = Annotated[
    str | None,
    typer.Option(
        metavar="METHOD",
        help="How ranges are taken: minmax, percentile[:PERCENT], entropy or mse; default mse.",
    ),
]
Exclude = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="Names of nodes that stay in fp32, one a line, such as bisect writes them."
    ),
]
Weights = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=PATH", help="A file for a backbone, or for `head`, instead of the recipe's. Repeats."
    ),
]
RandomSeed = Annotated[
    int | None,
    typer.Option(
        metavar="SEED", help="Seeded random weights for all that --weights does not name; reports say so."
    ),
]
MaxBatch = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=1024,
        help="Largest batch of one engine call; default 8 (2 with regions), or what an export says.",
    ),
]
Targets = Annotated[
    list[str] | None,
    typer.Option(
        "--target", metavar="BACKEND:DEVICE", help="Such as openvino:cpu. Repeats; commas accepted."
    ),
]
OneTarget = Annotated[
    str | None, typer.Option(metavar="BACKEND:DEVICE", help="Use this engine of the bundle.")
]
OnePrecision = Annotated[Precision | None, typer.Option(help="Use an engine of this precision.")]
ResampleOption = Annotated[
    Resample | None,
    typer.Option(help="`exact` as the weights' own transform, or `fast`; default: the recipe's."),
]


@contextmanager
def _trusting(path: Path) -> Iterator[None]:
    before = os.environ.get(TRUST)
    os.environ[TRUST] = str(path.absolute())
    try:
        yield
    finally:
        if before is None:
            del os.environ[TRUST]
        else:
            os.environ[TRUST] = before


def _hold_trust(context: typer.Context, path: Path | None) -> Path | None:
    """By the environment, for as long as the command runs: processes that it starts open bundles, too."""
    if path is not None:
        context.with_resource(_trusting(path))
    return path


#: Its callback does all: a command that has this option need not look at its value.
Trust = Annotated[
    Path | None,
    typer.Option(
        metavar="PUBLIC.pem",
        callback=_hold_trust,
        help=f"Refuse bundles that this key, or one of a folder, has not signed; default: {TRUST}.",
    ),
]


def sample_of(sample: str | None, fps: str | None) -> Sample:
    """Which frames of videos ``--sample`` and ``--fps`` say; one a second where neither is given.

    Raises:
        UsageError: Both are given, or the rule is none.
    """
    from vsa_rt.runtime.sampling import Sample

    if sample is not None and fps is not None:
        raise UsageError(f"--fps {fps}: short for --sample fps={fps}; give one of the two")
    if sample is None:
        sample = "fps=1" if fps is None else f"fps={fps}"
    return Sample.parse(sample)


def weights_of(entries: list[str] | None) -> dict[str, Path]:
    """``NAME=PATH`` of ``--weights``, as a dictionary.

    Raises:
        UsageError: An entry has another form.
    """
    pairs: dict[str, Path] = {}
    for entry in entries or []:
        name, equals, path = entry.partition("=")
        if not equals or not name or not path:
            raise UsageError(f"--weights {entry!r}: expected NAME=PATH")
        pairs[name] = Path(path)
    return pairs


def budget_of(text: str | None) -> Budget:
    """The budget of ``--budget``; the default where it is not given.

    Raises:
        UsageError: An entry names no clause, or a value that it does not take.
    """
    return Budget() if text is None else Budget.parse(text)


def excluded_of(path: Path | None) -> list[str]:
    """The node names of ``--exclude``: one a line; empty lines and those that begin with ``#`` are left out.

    Raises:
        UsageError: The file cannot be read.
    """
    if path is None:
        return []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--exclude {path}: cannot be read: {error}") from error
    return list(dict.fromkeys(w for line in lines if (w := line.strip()) and not w.startswith("#")))


def targets_of(entries: list[str] | None) -> list[Target]:
    """The targets of ``--target``, each once, commas taken apart.

    Raises:
        UsageError: An entry is no target.
    """
    texts = [text for entry in entries or [] for text in entry.split(",") if text.strip()]
    return list(dict.fromkeys(Target.parse(text) for text in texts))


Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="BACKBONE.OPTION=VALUE",
        help="An option of a backbone, such as g.objects=grid; or task=sll, mll or ldl; or labels=a,b,c or a "
        f"dataset's: {', '.join(LABEL_SETS)}. Repeats.",
    ),
]


def settings_of(entries: list[str] | None) -> dict[str, str]:
    """``BACKBONE.OPTION``, ``task``, ``labels`` or ``threshold`` to the text of its value.

    Raises:
        UsageError: An entry has another form.
    """
    pairs: dict[str, str] = {}
    for entry in entries or []:
        name, equals, value = entry.partition("=")
        if (
            not equals
            or not value
            or (name not in ("task", "labels", "threshold") and not all(name.partition(".")))
        ):
            raise UsageError(
                f"--set {entry!r}: expected BACKBONE.OPTION=VALUE, task=TASK, labels=LABEL,LABEL,... or "
                "threshold=NUMBER"
            )
        pairs[name] = value
    return pairs


def words_of(entries: list[str] | None) -> list[str]:
    """The words of a repeated option, commas taken apart, each once."""
    return list(dict.fromkeys(w.strip() for entry in entries or [] for w in entry.split(",") if w.strip()))


def numbers_of(option: str, entries: list[str] | None) -> list[int]:
    """The whole numbers of a repeated option, commas taken apart.

    Args:
        option: Its name, for the message.
        entries: As given.

    Raises:
        UsageError: An entry is no positive whole number.
    """
    words = words_of(entries)
    for word in words:
        if not (word.isascii() and word.isdigit() and len(word) < 10 and int(word)):
            raise UsageError(f"{option} {word!r}: expected positive whole numbers, such as 1,8,32")
    return [int(word) for word in words]


def share_of(option: str, text: str) -> float:
    """A share as ``5%`` or ``0.05``.

    Args:
        option: Its name, for the message.
        text: As given.

    Raises:
        UsageError: It is neither, negative, or not finite.
    """
    percent = text.strip().endswith("%")
    try:
        value = float(text.strip().removesuffix("%")) / (100 if percent else 1)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise UsageError(f"{option} {text!r}: expected a share such as 5% or 0.05")
    return value
