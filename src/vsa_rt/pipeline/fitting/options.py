"""The options of ``fit``, of heads and of probes, and what follows from them alone."""

from __future__ import annotations

import platform
import shlex
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np

from vsa_rt.errors import UsageError, needs
from vsa_rt.pipeline.export import Progress, silent
from vsa_rt.recipe import Fit, Recipe
from vsa_rt.version import __version__

with needs("export"):
    import PIL
    import sklearn
    import timm
    import torch


@dataclass(frozen=True)
class FitOptions:
    """How to fit.

    Attributes:
        seed: Of folds, weights and order.
        preset: A paper's schedule instead of the recipe's.
        split: Instead of the recipe's.
        folds: Instead of the recipe's.
        fold_files: Each lists one fold's test photographs; instead of ``split`` and ``folds``.
        weights: Backbone name to a file to use instead of the recipe's.
        random_seed: Seeded backbones.
        settings: ``BACKBONE.OPTION``, ``task`` or ``labels`` to a value instead of the recipe's.
        cache: Folder for features; ``None`` for ``$XDG_CACHE_HOME/vsa-rt``.
        progress: Told of every step.
    """

    seed: int = 0
    preset: str | None = None
    split: Literal["folds", "random"] | None = None
    folds: int | None = None
    fold_files: Sequence[Path] = ()
    weights: dict[str, Path] = field(default_factory=dict)
    random_seed: int | None = None
    settings: dict[str, str] = field(default_factory=dict)
    cache: Path | None = None
    progress: Progress = silent

    def split_of(self, fit: Fit) -> Fit:
        """The recipe's table with another split, where one is asked for.

        Raises:
            UsageError: Fold files meet another split.
        """
        if self.fold_files and (self.split is not None or self.folds is not None):
            raise UsageError("--fold-file: the files are the folds; leave out --split and --folds")
        if self.split is not None:
            fit = msgspec.structs.replace(fit, split=self.split)
        if self.folds is not None:
            fit = msgspec.structs.replace(fit, folds=self.folds)
        return fit

    def command(self, recipe: Recipe, data: Path, out: Path, *more: str) -> str:
        """What repeats a call, without the places of this machine; ``more`` are words of its own."""
        words = ["vsa-rt", "fit", recipe.name, "--data", data.resolve().name, "-o", out.name, *more]
        words += ["--seed", str(self.seed)]
        words += ["--preset", self.preset] if self.preset is not None else []
        words += ["--split", self.split] if self.split is not None else []
        words += ["--folds", str(self.folds)] if self.folds is not None else []
        words += [word for path in self.fold_files for word in ("--fold-file", path.name)]
        words += [w for name, path in self.weights.items() for w in ("--weights", f"{name}={path.name}")]
        words += ["--random-weights", str(self.random_seed)] if self.random_seed is not None else []
        words += [word for key, value in self.settings.items() for word in ("--set", f"{key}={value}")]
        return shlex.join(words)


def check_out(out: Path, suffix: str, beside: str) -> None:
    """Find out before the work whether its result can be written.

    Args:
        out: The file.
        suffix: That it must have.
        beside: What else is written, for the message.

    Raises:
        UsageError: It cannot.
    """
    if out.suffix != suffix or out.is_dir():
        raise UsageError(f"-o {out}: expected a file that ends in {suffix}; {beside}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out.parent):
            pass
    except OSError as error:
        raise UsageError(f"-o {out}: cannot be written: {error.strerror}") from error


def versions() -> dict[str, str]:
    """Of the libraries that compute heads and probes."""
    return {
        "vsa-rt": __version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "scikit-learn": sklearn.__version__,
        "timm": timm.__version__,
        "pillow": PIL.__version__,
    }
