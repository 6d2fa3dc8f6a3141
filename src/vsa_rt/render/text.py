"""Text from strangers: names, labels and files may hold anything, and a report must show it as text."""

from __future__ import annotations

import re
import unicodedata

#: Longest text in a page; ``report.json`` has the whole.
LONGEST = 600
#: Characters that act instead of being seen: controls, halves of pairs, line and paragraph separators.
_ACTING = {"Cc", "Cs", "Zl", "Zp"}
#: Those that change the direction of the text around them (Unicode TR 9, table 4) or hide in it.
_TURNING = set("\u061c\u200b\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2060\u2066\u2067\u2068\u2069\ufeff")
#: What Markdown may read as markup (CommonMark 0.31 and GitHub's tables, formulas, names and references).
_MARKUP = re.compile(r"([\\`*_\[\]<>|~$#@&!{}])")


def _seen(character: str) -> str:
    if character in _TURNING or unicodedata.category(character) in _ACTING:
        code = ord(character)
        return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
    return character


def shorten(text: str, limit: int) -> str:
    """Text of at most ``limit`` characters: its middle goes, since names differ at their ends."""
    if len(text) <= limit:
        return text
    ahead = limit // 2
    behind = limit - 1 - ahead
    return text[:ahead] + "…" + (text[-behind:] if behind else "")


def plain(text: str, limit: int = LONGEST) -> str:
    """One line of text that only shows: white space becomes a blank, what acts becomes an escape.

    Args:
        text: From anywhere.
        limit: Longest result.
    """
    line = " ".join(re.split(r"[ \t\r\n\f\v\x85\u2028\u2029]+", text[: 4 * limit])).strip()
    seen = "".join(map(_seen, line))
    if len(text) > 4 * limit:
        seen += "…"
    return shorten(seen, limit)


def markdown(text: str) -> str:
    """Text as Markdown that shows it as it is, in a table's cell or anywhere else in a line."""
    line = _MARKUP.sub(r"\\\1", plain(text))
    line = line.replace("://", ":\\/\\/").replace("www.", "www\\.")
    # At the start of a line these begin a list, a heading or a rule.
    return re.sub(r"^([-+=]+|\d+[.)])(?=\s|$)", lambda m: m[0][:-1] + "\\" + m[0][-1], line)
