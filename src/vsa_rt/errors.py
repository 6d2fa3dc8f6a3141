"""Every error that vsa-rt raises on purpose.

::

    VsaError                      exit code
    ├── UsageError                2   the call, the recipe or the data is wrong
    │   ├── RecipeError               a recipe's key is unknown, missing or does not fit
    │   ├── CheckpointError           a checkpoint is foreign or does not fit its network
    │   │   └── CheckpointAbsent          a checkpoint is not where it should be
    │   └── DatasetError              a labelled folder cannot be read
    ├── GateError                 1   a stage does not agree with the stage before it
    ├── ItemError                 1   one image cannot be processed; the others can
    ├── BundleError               3   a bundle is damaged, foreign or incomplete
    └── EnvironmentUnusable       3   this machine lacks a library or a capability

A message says what went wrong, with which item, what was expected or available, and what to do.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class VsaError(Exception):
    """Root of all errors that vsa-rt raises on purpose.

    Attributes:
        exit_code: What the command line exits with when this error ends it.
    """

    exit_code = 3


class UsageError(VsaError):
    """The caller asked for something that cannot be: a wrong option, path or combination."""

    exit_code = 2


class RecipeError(UsageError):
    """A recipe is wrong; the message names the key."""


class CheckpointError(UsageError):
    """A checkpoint is in another format or does not fit its network."""


class CheckpointAbsent(CheckpointError):
    """A checkpoint, or the package that ships it, is not there."""


class DatasetError(UsageError):
    """A folder of labelled photographs cannot be read as one."""


class GateError(VsaError):
    """A stage's output left the tolerance against the stage before it."""

    exit_code = 1


class BundleError(VsaError):
    """A bundle is damaged, written by another version, or lacks a file."""


class EnvironmentUnusable(VsaError):
    """This machine lacks a library or a capability that the request needs."""


class ItemError(VsaError):
    """One item cannot be processed.

    It is *returned* in the item's place, never raised past the batch.

    Attributes:
        item: What the caller passed, as text (a path, or ``item 3``).
        reason: One sentence without the item's name.
    """

    exit_code = 1

    def __init__(self, item: str, reason: str) -> None:
        super().__init__(f"{item}: {reason}")
        self.item = item
        self.reason = reason


@contextmanager
def needs(extra: str) -> Iterator[None]:
    """Around imports of optional libraries: a missing one becomes a sentence that says how to install it.

    Args:
        extra: The extra of vsa-rt that installs what is imported inside.

    Raises:
        EnvironmentUnusable: A library is not installed.
    """
    try:
        yield
    except ImportError as error:
        name = (error.name or "").partition(".")[0]
        if name in ("", "vsa_rt"):  # a fault of our own, not a missing library
            raise
        raise EnvironmentUnusable(f"{name} is not installed; pip install 'vsa-rt[{extra}]'") from error
