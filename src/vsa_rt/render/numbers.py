"""Numbers as the pages write them: units in the heading, one number of decimals in a column."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vsa_rt.bench.records.timing import Percentile, Series

#: Where there is no number.
NONE = "\N{EN DASH}"
#: As typeset; a hyphen may break a line.
MINUS = "\N{MINUS SIGN}"
#: Behind a ratio.
TIMES = "\N{MULTIPLICATION SIGN}"


def decimals(values: Iterable[float | None], digits: int = 3) -> int:
    """Decimals with which the smallest of the numbers keeps its significant digits; at most 4."""
    sizes = [abs(v) for v in values if v is not None and math.isfinite(v) and v]
    if not sizes:
        return 0
    return min(4, max(0, digits - 1 - math.floor(math.log10(min(sizes)))))


def fixed(value: float | None, places: int) -> str:
    """A number with so many decimals."""
    if value is None:
        return NONE
    if not math.isfinite(value):
        return "not a number" if math.isnan(value) else "infinite"
    text = f"{value:,.{places}f}"
    return text.replace("-", MINUS) if float(text.replace(",", "")) else f"{0:.{places}f}"


def signed(value: float | None, places: int) -> str:
    """A difference with its sign."""
    if value is None or not math.isfinite(value):
        return fixed(value, places)
    text = f"{value:+.{places}f}"
    return text.replace("-", MINUS) if float(text) else text[1:]


def rounded(value: float | None, digits: int = 3) -> str:
    """A number with so many significant digits, small ones with a power of ten."""
    if value is None or not math.isfinite(value):
        return fixed(value, 0)
    if value and abs(value) < 1e-3:
        return f"{value:.{digits - 1}e}".replace("e-0", "e-").replace("-", MINUS)
    return fixed(value, decimals([value], digits))


def percent(share: float | None, places: int = 1) -> str:
    """A share of 1 in percent."""
    return NONE if share is None else f"{fixed(100 * share, places)} %"


def count(number: int, one: str, many: str = "") -> str:
    """``1 image``, ``2 images``."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def at(series: Series, share: float) -> Percentile | None:
    """The percentile at a share."""
    return next((p for p in series.percentiles if abs(p.share - share) < 1e-9), None)


def steady(series: Series) -> list[float]:
    """The samples that the percentiles describe."""
    return series.samples[series.warm_up :]


def middle(series: Series) -> float | None:
    """Median of the steady samples, also where they are too few to bound it; ``None`` without samples."""
    from vsa_rt.bench.clock import median_ms

    found = steady(series)
    return median_ms(found) if found else None
