"""What every record of the report is."""

from __future__ import annotations

import msgspec


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What every record of the report is: frozen, by keyword, and refusing keys that it does not know."""
