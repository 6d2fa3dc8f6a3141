"""The sweep: every plan of chosen axes as a point between accuracy and latency, resumable."""

from __future__ import annotations

from typing import Literal

Axis = Literal["target", "precision", "batch"]
