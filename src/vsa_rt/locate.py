"""Finding files that a stranger names: inside a folder or an installed package, and nowhere else."""

from __future__ import annotations

from importlib import util
from pathlib import Path

from vsa_rt.errors import CheckpointAbsent, RecipeError

#: How a recipe spells a file that an installed package ships.
_PACKAGE = "package:"


def contained(folder: Path, inner: str) -> Path | None:
    """``folder / inner`` if it stays inside the folder, links followed; else ``None``."""
    if "\0" in inner:
        return None
    try:
        path = (folder / inner).resolve()
        return path if path.is_relative_to(folder.resolve()) else None
    except (OSError, RuntimeError):
        return None


def is_file(path: Path) -> bool:
    """Whether a path leads to a regular file; one that no file can have does not."""
    try:
        return path.is_file()
    except (OSError, ValueError, RuntimeError):
        return False


def locate(path: str, folder: Path, key: str, obtain: str = "") -> Path:
    """Find a file that a recipe names.

    Args:
        path: As the recipe has it: relative to ``folder``, or ``package:NAME/inner/path``.
        folder: The recipe's folder.
        key: The recipe's key, for messages.
        obtain: How to get the file, for messages.

    Returns:
        An existing regular file.

    Raises:
        RecipeError: The path leaves its folder or its package.
        CheckpointAbsent: The file or the package is not there.
    """
    advice = f" {obtain}" if obtain else ""
    if path.startswith(_PACKAGE):
        package, _, inner = path[len(_PACKAGE) :].partition("/")
        known = package.isidentifier() and not package.startswith("__")
        spec = util.find_spec(package) if known else None
        if spec is None or not spec.submodule_search_locations:
            raise CheckpointAbsent(f"key `{key}`: package {package!r} is not installed.{advice}")
        folder, path = Path(next(iter(spec.submodule_search_locations))), inner
    found = contained(folder, path)
    if found is None:
        raise RecipeError(
            f"key `{key}`: {path!r} leaves the folder {folder}; name a file elsewhere with --weights NAME=PATH"
        )
    if not is_file(found):
        raise CheckpointAbsent(
            f"key `{key}`: no file {found}.{advice or ' Name it with --weights NAME=PATH.'}"
        )
    return found


def where_found(path: Path, spelling: str) -> str:
    """What a manifest keeps of a file's place, so that it is found again: a package's name, or the whole path."""
    return spelling if spelling.startswith(_PACKAGE) else str(path.absolute())
