"""Where the scenes of a video begin: FFmpeg's `scdet` filter."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vsa_rt.runtime.sampling import SCENE_THRESHOLD
from vsa_rt.runtime.video_pixels import graph_of

if TYPE_CHECKING:
    from av.filter import Graph
    from av.video.frame import VideoFrame


class Scenes:
    """Looks at every frame of a video, in order."""

    def __init__(self) -> None:
        self._graph: Graph | None = None
        self._look: tuple[int, int, str] | None = None

    def begins(self, frame: VideoFrame) -> bool:
        """Whether a scene begins with this frame. A change of size or pixel format begins one."""
        from av.error import BlockingIOError

        look = frame.width, frame.height, frame.format.name
        new = self._graph is None or look != self._look
        if self._graph is None or new:
            # sc_pass lets through the frames that begin a scene, and no others.
            self._graph = graph_of(frame, [("scdet", f"threshold={SCENE_THRESHOLD:g}:sc_pass=1")])
            self._look = look
        self._graph.vpush(frame)
        try:
            self._graph.vpull()
        except BlockingIOError:
            return new
        return True
