"""The search for what is guilty: backbones by what each changes, nodes by halving. It runs nothing itself."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

T = TypeVar("T", bound=Hashable)
#: Greedy steps end at an item that takes away less than this share of what harm is left.
_HELPS = 0.005


class LimitReached(Exception):
    """No more trials are allowed: what is known now has to do."""


class Verdict(Protocol):
    """What a trial tells."""

    @property
    def passed(self) -> bool:
        """Whether the budget holds."""
        ...

    @property
    def harm(self) -> float:
        """How much it changes; less is better."""
        ...


@dataclass(frozen=True)
class Reduced(Generic[T]):
    """A set whose exclusion holds.

    Attributes:
        items: In their order.
        minimal: Whether each of them is needed: without any single one of them the rest does not hold.
    """

    items: list[T]
    minimal: bool


def guilty_backbones(
    taps: Sequence[str],
    alone: Callable[[str], Verdict],
    without: Callable[[Sequence[str]], Verdict],
) -> list[str] | None:
    """Backbones of which nodes have to be excluded, the worst first.

    Those that leave the budget alone are guilty. If none does, the one without which the plan changes least is; if
    that is not enough, the next one, too.

    Args:
        taps: Lowered backbones, at least one; all of them together are known to leave the budget.
        alone: Tries one of them lowered and the others in fp32.
        without: Tries all but these lowered.

    Returns:
        ``None`` where the budget does not hold even with all of them in fp32.
    """
    if len(taps) == 1:
        return list(taps) if without(taps).passed else None
    judged = {tap: alone(tap) for tap in taps}
    worst = sorted(taps, key=lambda tap: -judged[tap].harm)
    guilty = [tap for tap in worst if not judged[tap].passed]
    if not guilty:
        left_out = {tap: without([tap]) for tap in taps}
        # One whose absence heals the plan comes before one whose absence only lessens the harm.
        worst = sorted(taps, key=lambda tap: (not left_out[tap].passed, left_out[tap].harm))
        guilty = worst[:1]
    rest = [tap for tap in worst if tap not in guilty]
    while not without([tap for tap in taps if tap in guilty]).passed:
        if not rest:
            return None
        guilty.append(rest.pop(0))
    return guilty


def reduce(items: Sequence[T], excluding: Callable[[list[T]], Verdict], greedy: int) -> Reduced[T]:
    """A small set of items whose exclusion holds, given that excluding all of them does, and excluding none does not.

    1. Greedily: of the halves the one whose exclusion helps more, down to one item, which is excluded from then on;
       again, until it holds, an item hardly helps, or ``greedy`` trials are used. About ``2 log2 n`` trials an item.
       It finds the worst where harm adds up.
    2. Where that did not suffice, QuickXplain on the rest (Junker 2004, "QUICKXPLAIN: preferred explanations and
       relaxations for over-constrained problems", AAAI): where one half is enough the other one is innocent as a
       whole, and where neither is it goes into both. At most ``2 k log2(n / k) + 2 k`` trials for k guilty ones of n,
       whatever harm adds up to, so long as excluding more does none.
    3. Each item is put back once, and stays lowered if it holds without it (the last step of delta debugging: Zeller
       and Hildebrandt 2002, "Simplifying and isolating failure-inducing input", IEEE TSE 28).

    Args:
        items: Unlike each other.
        excluding: Tries the exclusion of some of them, but not all, which it is given in their order.
        greedy: Trials for the first step.

    Returns:
        The smallest set that was seen to hold. ``excluding`` may end the search with ``LimitReached``; then it need
        not be minimal.
    """
    search = _Search(items, excluding)
    try:
        worst = search.worst(greedy)
        rest = [item for item in items if item not in worst]
        if not search.tried(worst).passed:
            search.tried([*worst, *search.needed(worst, [], rest)])
        before = -1
        while len(search.known) != before:
            before = len(search.known)
            for item in list(search.known):
                search.tried([other for other in search.known if other != item])
    except LimitReached:
        return Reduced(search.known, minimal=False)
    return Reduced(search.known, minimal=True)


@dataclass(frozen=True)
class _Held:
    """The verdict on excluding everything."""

    passed: bool = True
    harm: float = 0.0


class _Search(Generic[T]):
    """What was tried, and what was seen to hold on the way.

    Attributes:
        known: The smallest set that was seen to hold.
    """

    def __init__(self, items: Sequence[T], excluding: Callable[[list[T]], Verdict]) -> None:
        self._items, self._excluding = items, excluding
        self._verdicts: dict[frozenset[T], Verdict] = {}
        self.known = list(items)

    def tried(self, chosen: Collection[T]) -> Verdict:
        """How excluding these ends; the same set is one trial, whatever its order is."""
        wanted = frozenset(chosen)
        if len(wanted) == len(self._items):
            return _Held()
        if wanted not in self._verdicts:
            some = [item for item in self._items if item in wanted]
            verdict = self._verdicts[wanted] = self._excluding(some)
            if verdict.passed and len(some) < len(self.known):
                self.known = some
        return self._verdicts[wanted]

    def worst(self, most: int) -> list[T]:
        """Items that harm most, the worst first: as many as it takes, or as ``most`` trials find."""
        found: list[T] = []
        harm = self.tried(found).harm
        while len(self._verdicts) < most and len(found) + 1 < len(self._items):
            item = self._worst_beside(found)
            verdict = self.tried([*found, item])
            if not verdict.passed and verdict.harm > (1 - _HELPS) * harm:
                break
            found.append(item)
            if verdict.passed:
                break
            harm = verdict.harm
        return found

    def _worst_beside(self, excluded: Sequence[T]) -> T:
        """The item that halving ends at."""
        items = [item for item in self._items if item not in excluded]
        while len(items) > 1:
            halves = (items[: len(items) // 2], items[len(items) // 2 :])
            items = min(halves, key=lambda half: self.tried([*excluded, *half]).harm)
        return items[0]

    def needed(self, excluded: list[T], added: Sequence[T], items: Sequence[T]) -> list[T]:
        """Those of the items that have to be excluded as well: QuickXplain.

        Args:
            excluded: What is excluded already.
            added: What of it was not when this was last asked.
            items: At least one; with all of them excluded it holds.
        """
        if added and self.tried(excluded).passed:
            return []
        if len(items) == 1:
            return list(items)
        first, second = items[: len(items) // 2], items[len(items) // 2 :]
        of_second = self.needed([*excluded, *first], first, second)
        return [*self.needed([*excluded, *of_second], of_second, first), *of_second]
