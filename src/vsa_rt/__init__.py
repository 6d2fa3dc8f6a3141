"""vsa-rt: visual-sentiment ensembles as one engine, run as one call, proved against PyTorch.

``vsa_rt.load(bundle)`` opens a bundle; ``vsa_rt.video(path)`` yields frames of a video. Nothing heavy is imported before
that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vsa_rt.contracts import Item, Sentiment
from vsa_rt.errors import ItemError, VsaError
from vsa_rt.version import __version__

if TYPE_CHECKING:
    from vsa_rt.runtime.load import load
    from vsa_rt.runtime.video import video

__all__ = ["Item", "ItemError", "Sentiment", "VsaError", "__version__", "load", "video"]


def __getattr__(name: str) -> Any:
    """Import ``load`` and ``video`` when they are first asked for."""
    if name == "load":
        from vsa_rt.runtime.load import load

        return load
    if name == "video":
        from vsa_rt.runtime.video import video

        return video
    raise AttributeError(f"module 'vsa_rt' has no attribute {name!r}")
