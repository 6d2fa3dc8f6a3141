"""Trials of plans: what each one changes, kept in a file so that an interrupted search goes on where it was."""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import msgspec

from vsa_rt.bench.parity import Parity
from vsa_rt.documents import finite, write_whole
from vsa_rt.errors import UsageError, VsaError
from vsa_rt.pipeline.search.bisection import LimitReached
from vsa_rt.plan import Plan

SCHEMA = 1
#: What a trial was made for, first of all.
Role = Literal["whole", "one backbone", "without backbones", "search"]


class Trial(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One plan that was built and judged.

    Attributes:
        role: What it was made for, first of all.
        plan: What was lowered.
        images: How many photographs decided.
        flips: Labels that flip outside ties.
        ties: Labels that flip at a margin that says nothing.
        widest: The reference's largest margin where a label flips, ties included; 0 where none does.
        kl: Mean divergence of the normalised scores, in nats; ``None`` where labels mean nothing.
        relative: The taps' largest relative difference; ``None`` where one is not a number.
        accuracy: Candidate minus reference in the task's first metric, and the low and high end of its 95 %
            interval; empty without labels.
        reasons: Why it is over the budget, or outside the tolerance of the outputs; empty if it holds.
    """

    role: Role
    plan: Plan
    images: int
    flips: int
    ties: int
    widest: float
    kl: float | None
    relative: float | None
    accuracy: list[float]
    reasons: list[str]

    @property
    def passed(self) -> bool:
        """Whether it is inside the budget."""
        return not self.reasons

    @property
    def harm(self) -> float:
        """How much it changes: mean KL, or where labels mean nothing the largest relative difference."""
        for figure in (self.kl, self.relative):
            if figure is not None:
                return figure
        return float("inf")

    def __str__(self) -> str:
        figure = f"KL {self.kl:.3g}" if self.kl is not None else f"relative difference {self.harm:.3g}"
        return f"{figure}, {'inside the budget' if self.passed else 'over budget'}"


def trial_of(plan: Plan, role: Role, parity: Parity) -> Trial:
    """What a comparison says about a plan."""
    first = parity.metrics[0] if parity.metrics else None
    made = Trial(
        role=role,
        plan=plan,
        images=parity.images,
        flips=len(parity.flips) - parity.ties,
        ties=parity.ties,
        widest=max((f.margin for f in parity.flips), default=0.0),
        kl=parity.kl,
        relative=max((t.relative for t in parity.taps if t.relative is not None), default=None),
        accuracy=[first.candidate - first.reference, first.low, first.high] if first else [],
        reasons=parity.reasons,
    )
    # As the file has it, so that a trial that is read back is the trial.
    return msgspec.convert(finite(msgspec.to_builtins(made)), Trial)


class Basis(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What trials were held against.

    Attributes:
        reference: ``torch`` or ``onnx``.
        why: Why it is not torch; empty if it is.
        stand_ins: Photographs without files of their ready tensors, which got stand-ins.
        rejected: Photographs that could not be read, each with the reason.
    """

    reference: str
    why: str
    stand_ins: int
    rejected: list[tuple[str, str]]


class Verified(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The plan with its list, built once more, beside the plan without it.

    Attributes:
        before: The plan without the list.
        trial: What the plan with it changes.
        before_ms: Batch size to median milliseconds per call without the list.
        after_ms: And with it, interleaved in the same run.
    """

    before: Plan
    trial: Trial
    before_ms: dict[str, float]
    after_ms: dict[str, float]


class _State(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """The file."""

    schema: int
    key: dict[str, str]
    basis: Basis | None = None
    trials: list[Trial] = []
    verified: list[Verified] = []


class Trials:
    """Every trial of one search, each made once.

    Args:
        folder: Where they are kept; ``None`` keeps nothing.
        key: Everything but the plan that decides how a trial ends.
        limit: How many plans the role ``search`` may ask for, those kept from an earlier run included: an interrupted
            search ends as one that was not.
        progress: Told after each trial.

    Attributes:
        limit: As given.
        asked: The trials of this search, in the order in which they were first asked for.
        made: How many of them were made now.
        notes: What is odd about the folder.
    """

    def __init__(
        self, folder: Path | None, key: Mapping[str, str], limit: int, progress: Callable[[str], None]
    ) -> None:
        self.limit, self._progress = limit, progress
        self._state = _State(schema=SCHEMA, key=dict(key))
        self._file = folder / _file_name(key) if folder is not None else None
        self.asked: list[Trial] = []
        self.made = 0
        self.notes: list[str] = []
        if self._file is not None:
            self._note_others(self._file)
            self._state = self._read(self._file)

    def _note_others(self, file: Path) -> None:
        others = sorted(p.name for p in file.parent.glob("trials-*.json") if p != file)
        if others:
            self.notes.append(
                "not used, since they are of another graph, target, calibration or budget, or of other photographs: "
                f"{', '.join(others)}"
            )

    def _read(self, file: Path) -> _State:
        """The state of an earlier run; an empty one where there is none that can be used."""
        try:
            found = msgspec.json.decode(file.read_bytes(), type=_State)
        except FileNotFoundError:
            return self._state
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            self.notes.append(f"{file.name} cannot be read ({error}): its trials were made again")
            return self._state
        if (found.schema, found.key) != (SCHEMA, self._state.key) or found.basis is None:
            self.notes.append(f"{file.name} is not what its name says: its trials were made again")
            return self._state
        return found

    def _keep(self) -> None:
        if self._file is not None:
            write_whole(self._file, msgspec.json.format(msgspec.json.encode(self._state), indent=1))

    @property
    def basis(self) -> Basis:
        """What trials are held against; it is there once there is a trial."""
        if self._state.basis is None:
            raise VsaError("trials: nothing was tried yet")
        return self._state.basis

    @basis.setter
    def basis(self, found: Basis) -> None:
        self._state.basis = found

    def known(self, plan: Plan) -> Trial | None:
        """How a plan's trial ended, where it was made."""
        return next((t for t in self._state.trials if t.plan == plan), None)

    def trial(self, plan: Plan, role: Role, what: str, judge: Callable[[], Parity]) -> Trial:
        """How a plan's trial ends: from the file, or made now and kept.

        Args:
            plan: What is lowered.
            role: What it is made for.
            what: The same in words, for progress.
            judge: Builds and judges it.

        Raises:
            LimitReached: The search has asked for as many plans as it may.
        """
        found = next((t for t in self.asked if t.plan == plan), None)
        if found is not None:
            return found
        if role == "search" and sum(t.role == role for t in self.asked) >= self.limit:
            raise LimitReached
        found = self.known(plan)
        if found is None:
            found = trial_of(plan, role, judge())
            self._state.trials.append(found)
            self._keep()
            self.made += 1
        found = msgspec.structs.replace(found, role=role)
        self.asked.append(found)
        self._progress(f"trial {len(self.asked)}: {what}: {found}")
        return found

    def verified(self, before: Plan, after: Plan, verify: Callable[[], Verified]) -> Verified:
        """The last look at two plans: from the file, or taken now and kept."""
        known = self._state.verified
        found = next((v for v in known if (v.before, v.trial.plan) == (before, after)), None)
        if found is None:
            found = verify()
            self._state.verified.append(found)
            self._keep()
        return found


def _file_name(key: Mapping[str, str]) -> str:
    """One file for each key, so that no run spoils another's."""
    text = msgspec.json.encode(dict(key), order="deterministic")
    return f"trials-{hashlib.sha256(text).hexdigest()[:16]}.json"


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """A folder that no other run works in, until the block ends or the process dies.

    Raises:
        UsageError: It cannot be made, or another run holds it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise UsageError(f"{folder}: cannot be written: {error.strerror}; name another folder") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UsageError(
                f"{folder}: another run works there; wait for it, or name another folder"
            ) from error
        yield
    finally:
        os.close(descriptor)
