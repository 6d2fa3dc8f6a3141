"""The budget: how much a lowered precision may change what an ensemble decides. It gates; speed comes after it."""

from __future__ import annotations

import math
import re
from decimal import Decimal

import msgspec

from vsa_rt.errors import UsageError

#: A number as people write it; more than two digits of an exponent are nobody's budget.
_NUMBER = re.compile(r"(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,2})?")
#: Clause to what it takes, for messages.
_TAKES = {
    "flips": "a share such as 0.5% or 0.005",
    "margin": "a share such as 0.2 or 20%",
    "kl": "nats such as 0.01",
    "accuracy": "a share such as 0.5% or 0.005, or off",
}
#: Clauses that are shares of 1, and may be written in percent.
_SHARES = frozenset({"flips", "margin", "accuracy"})
_OFF = "off"


class Budget(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a candidate may change against its reference; each clause has to hold.

    Attributes:
        flips: Largest share of images whose label may flip outside ties, 0 to 1; one image always may.
        margin: No label may flip where the reference's margin is above this, 0 to 1.
        kl: Largest mean Kullback-Leibler divergence of the normalised scores, in nats.
        accuracy: With labels: a candidate fails if the bootstrap's whole 95 % interval of its difference in the
            task's first metric lies below minus this, a share of 1. At 0 a loss fails as soon as it is significant;
            at 0.005 it must be significantly more than half a point. ``None``: labels are not asked.
    """

    flips: float = 0.01
    margin: float = 0.2
    kl: float = 0.01
    accuracy: float | None = 0.0

    def __post_init__(self) -> None:
        for clause in _TAKES:
            value = getattr(self, clause)
            if value is None and clause == "accuracy":
                continue
            largest = 1.0 if clause in _SHARES else math.inf
            if not (math.isfinite(value) and 0 <= value <= largest):
                allowed = "0 to 1" if clause in _SHARES else "a finite number from 0 on"
                raise ValueError(f"budget {clause} {value}: expected {allowed}")

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Read ``flips=0.5%,kl=0.005``; a clause that is not named keeps its default.

        Args:
            text: ``CLAUSE=VALUE``, separated by commas; shares as ``0.5%`` or ``0.005``, ``accuracy=off``.

        Raises:
            UsageError: An entry is no such pair, names no clause or one twice, or its value is not allowed.
        """
        given: dict[str, float | None] = {}
        for entry in text.split(","):
            clause, equals, value = (part.strip() for part in entry.partition("="))
            if not equals or clause not in _TAKES:
                raise UsageError(
                    f"budget {entry.strip()!r}: expected CLAUSE=VALUE with a clause of {', '.join(_TAKES)}, "
                    "such as flips=0.5%,kl=0.005"
                )
            if clause in given:
                raise UsageError(f"budget {entry.strip()!r}: {clause} is named twice")
            given[clause] = _value(clause, value)
        return msgspec.structs.replace(cls(), **given)

    def __str__(self) -> str:
        accuracy = _OFF if self.accuracy is None else _percent(self.accuracy)
        return f"flips={_percent(self.flips)},margin={_plain(self.margin)},kl={_plain(self.kl)},accuracy={accuracy}"


def _value(clause: str, text: str) -> float | None:
    """The value of one clause.

    Raises:
        UsageError: It is none, or out of range.
    """
    if clause == "accuracy" and text == _OFF:
        return None
    share = text.endswith("%") and clause in _SHARES
    digits = text.removesuffix("%").rstrip() if share else text
    if not _NUMBER.fullmatch(digits) or not digits.isascii():
        raise UsageError(f"budget {clause}={text}: expected {_TAKES[clause]}")
    # Decimal: 0.3 % is the same number as 0.003.
    value = float(Decimal(digits) / 100) if share else float(digits)
    if clause in _SHARES and value > 1:
        raise UsageError(f"budget {clause}={text}: expected {_TAKES[clause]}, at most 100%")
    return value


def _plain(value: float) -> str:
    """The shortest decimals that are read back as this number."""
    return f"{Decimal(repr(value)).normalize():f}"


def _percent(share: float) -> str:
    return f"{(Decimal(repr(share)) * 100).normalize():f}%"
