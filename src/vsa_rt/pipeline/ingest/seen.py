"""What was met before, at a fixed price per name."""

from __future__ import annotations

from hashlib import blake2b


def _digest(text: str) -> bytes:
    # 128 bits: two of a billion names agree by chance once in 10^20 runs. Any text has them, lone surrogates too.
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


class Seen:
    """A set of texts that holds 16 bytes of each, about 100 bytes with Python's own part, whatever their length."""

    def __init__(self) -> None:
        self._digests: set[bytes] = set()

    def add(self, text: str) -> bool:
        """Put a text in.

        Returns:
            Whether it is new.
        """
        before = len(self._digests)
        self._digests.add(_digest(text))
        return len(self._digests) > before

    def __contains__(self, text: str) -> bool:
        return bool(self._digests) and _digest(text) in self._digests

    def __len__(self) -> int:
        return len(self._digests)


class Unique:
    """Names that become distinct: the second ``a.jpg`` is ``a.jpg#2``, in every run that meets them in this order."""

    def __init__(self) -> None:
        self._seen = Seen()
        self._times: dict[str, int] = {}  # of those that came again

    def name(self, name: str) -> str:
        """A name that no earlier call returned: this one, or this one with a number."""
        if self._seen.add(name):
            return name
        while True:
            number = self._times.get(name, 1) + 1
            self._times[name] = number
            if self._seen.add(f"{name}#{number}"):
                return f"{name}#{number}"
