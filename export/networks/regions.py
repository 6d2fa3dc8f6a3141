"""Regions of an image: where fixed ones lie, and how they are cut out inside the graph."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from vsa_rt.architecture import grid_levels
from vsa_rt.errors import UsageError


def grid_boxes(count: int = 50) -> Tensor:
    """Fixed overlapping regions at several scales, for images that come without detections.

    A level of n x n boxes has sides of 2 / (n + 1) and steps of half a side, so that neighbours overlap by half
    and the level covers the image. The levels are n = 1 (the whole image), 2, 3 and so on, and last one finer
    level that fills the count: 50 = 1 + 4 + 9 + 36, with sides of 1, 2/3, 1/2 and 2/7.

    Args:
        count: Number of boxes: 1 + 4 + .. + k², or that and one larger square, for some k from 1 on.

    Returns:
        Corners x1, y1, x2, y2 in [0, 1] of the upright image, float32 ``(count, 4)``; coarse before fine, rows
        from the top, in each row from the left.

    Raises:
        UsageError: The count is no such sum.
    """
    boxes = [
        [x / (n + 1), y / (n + 1), (x + 2) / (n + 1), (y + 2) / (n + 1)]
        for n in grid_levels(count)
        for y in range(n)
        for x in range(n)
    ]
    return torch.tensor(boxes, dtype=torch.float32)


def present_boxes(boxes: Tensor) -> Tensor:
    """Which boxes are there: one without area is an absent one.

    Args:
        boxes: Corners x1, y1, x2, y2, ``(N, K, 4)``.

    Returns:
        1 for present and 0 where x2 <= x1 or y2 <= y1, ``(N, K)`` in the boxes' dtype.
    """
    wide = boxes[..., 2] > boxes[..., 0]
    high = boxes[..., 3] > boxes[..., 1]
    return (wide & high).to(boxes.dtype)


class CutRegions(nn.Module):
    """Cuts boxes out of a frame and brings each to one size: warp the box, take the centre.

    With the defaults, sample i of 224 sits at the centre of pixel 16 + i of the 256 that the whole box would be
    warped to: the 256 x 256 warp and 224 x 224 centre crop of the ResNet-152 extraction (xuchaoxi/video-cnn-feat).

    Two things differ from cropping the original picture and warping the crop. The pixels are the frame's, which
    has been resized once already. And each sample is bilinear between four neighbours of the frame: a box larger
    than the result is not averaged (no antialias), so fine texture in it aliases. A box of fewer than 8 frame
    pixels (at the default share) also blends in the half pixel around it, which a crop would repeat from its edge.

    Coordinates must stay in float32: half precision has steps of up to 1/4096 of the frame.

    Args:
        size: Side of the result, pixels.
        share: Side of the centre as a share of the box's, in (0, 1].

    Raises:
        UsageError: No pixels, or a share outside (0, 1].
    """

    #: Where the samples lie along a box's side, as shares of it, ``(size,)``.
    steps: Tensor

    def __init__(self, size: int = 224, share: float = 224 / 256) -> None:
        super().__init__()
        if size < 1:
            raise UsageError(f"regions of {size} pixels: expected a side of 1 or more")
        if not 0 < share <= 1:
            raise UsageError(f"regions of share {share}: expected more than 0 and at most 1 of a box's side")
        self.size = size
        steps = [0.5 + (i + 0.5 - size / 2) * (share / size) for i in range(size)]
        self.register_buffer("steps", torch.tensor(steps, dtype=torch.float32), persistent=False)

    def forward(self, frame: Tensor, boxes: Tensor) -> Tensor:
        """Cut every box out of its frame.

        Args:
            frame: The whole upright image warped to one size, float32 ``(N, 3, H, W)``; shares of its sides are
                therefore the image's.
            boxes: Corners x1, y1, x2, y2 in [0, 1] of the upright image, float32 ``(N, K, 4)``. Outside the
                image its border pixels repeat. A box without area repeats a line or a point, and one with
                swapped corners comes out mirrored; :func:`present_boxes` tells which to leave out.

        Returns:
            ``(N·K, 3, size, size)``; box k of frame n is row n·K + k.
        """
        count, size = boxes.shape[1], self.size
        near, far = boxes[..., :2], boxes[..., 2:]
        # (N, K, 2, size): the samples' x and y, as shares of the frame.
        places = near.unsqueeze(-1) + (far - near).unsqueeze(-1) * self.steps
        # GridSample's own coordinates. Beyond -1 and 1 there is only the border: clipping changes no value and
        # keeps far-off boxes within what every backend's index arithmetic holds.
        places = (2.0 * places - 1.0).clamp(-1.0, 1.0)
        across = places[:, :, 0].unsqueeze(2).expand(-1, -1, size, -1)
        down = places[:, :, 1].unsqueeze(3).expand(-1, -1, -1, size)
        # All boxes of a frame below each other: one tall grid reads the frame in place, without K copies of it.
        grid = torch.stack((across, down), -1).reshape(-1, count * size, size, 2)
        tall = functional.grid_sample(
            frame, grid, mode="bilinear", padding_mode="border", align_corners=False
        )
        parts = tall.reshape(-1, 3, count, size, size).permute(0, 2, 1, 3, 4)
        return parts.reshape(-1, 3, size, size)
