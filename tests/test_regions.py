"""Fixed regions, and cutting regions out of a frame, against an independent bilinear implementation."""

from __future__ import annotations

import contextlib
import io
import warnings
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from vsa_rt.errors import UsageError

torch = pytest.importorskip("torch", reason="the cutting is a torch module")

from vsa_rt.export.networks.regions import CutRegions, grid_boxes, present_boxes

Array = NDArray[np.float64]


def draw(*shape: int, seed: int = 1) -> Any:
    return torch.from_numpy(np.random.default_rng(seed).uniform(0, 255, shape)).float()


def sample(frame: Array, x: float, y: float) -> Array:
    """The colour of ``(3, H, W)`` at a place in pixels, whose centres lie at whole numbers; the border repeats."""
    left, top = int(np.floor(x)), int(np.floor(y))
    right_share, bottom_share = x - left, y - top

    def pixel(row: int, column: int) -> Array:
        height, width = frame.shape[1:]
        colour: Array = frame[:, min(max(row, 0), height - 1), min(max(column, 0), width - 1)]
        return colour

    upper = pixel(top, left) * (1 - right_share) + pixel(top, left + 1) * right_share
    lower = pixel(top + 1, left) * (1 - right_share) + pixel(top + 1, left + 1) * right_share
    return upper * (1 - bottom_share) + lower * bottom_share


def cut(frame: Array, box: Array, size: int, whole: int) -> Array:
    """Warp a box to ``whole`` squared and keep the centre: sample i at the centre of pixel margin + i of whole."""
    height, width = frame.shape[1:]
    margin = (whole - size) // 2
    shares = (np.arange(size) + margin + 0.5) / whole
    xs = (box[0] + (box[2] - box[0]) * shares) * width - 0.5
    ys = (box[1] + (box[3] - box[1]) * shares) * height - 0.5
    return np.stack([np.stack([sample(frame, x, y) for x in xs], 1) for y in ys], 1)


BOXES = torch.tensor(
    [
        [[0.0, 0.0, 1.0, 1.0], [0.21, 0.13, 0.84, 0.57], [0.5, 0.25, 0.53, 0.9]],
        [[-0.3, -0.2, 0.4, 1.4], [0.9, 0.8, 1.7, 1.1], [0.333, 0.1, 0.667, 0.95]],
    ]
)


@pytest.mark.parametrize("size", [14, 28])
def test_a_region_is_a_warp_and_its_centre(size: int) -> None:
    frames = draw(2, 3, 20, 31)
    found = CutRegions(size, 7 / 8)(frames, BOXES)
    assert found.shape == (6, 3, size, size)
    for n in range(2):
        for k in range(3):
            wanted = cut(frames[n].double().numpy(), BOXES[n, k].double().numpy(), size, size * 8 // 7)
            # Coordinates in float32: 31 pixels times 2^-23, times steps of up to 255 between pixels.
            np.testing.assert_allclose(found[3 * n + k].numpy(), wanted, rtol=0, atol=5e-3)


def test_the_defaults_are_224_of_256() -> None:
    cutter = CutRegions()
    wanted = (np.arange(16, 240) + 0.5) / 256
    np.testing.assert_allclose(cutter.steps.numpy(), wanted, rtol=1e-7)
    assert cutter(draw(1, 3, 8, 8), BOXES[:1, :2]).shape == (2, 3, 224, 224)
    assert not cutter.state_dict()


def test_a_box_of_whole_pixels_at_its_own_size_is_a_slice() -> None:
    frames = draw(2, 3, 64, 128)
    corners = [[(5, 9), (64, 0)], [(112, 48), (37, 21)]]
    boxes = torch.tensor(
        [[[x / 128, y / 64, (x + 16) / 128, (y + 16) / 64] for x, y in row] for row in corners]
    )
    found = CutRegions(14, 14 / 16)(frames, boxes)
    wanted = [
        frames[n, :, y + 1 : y + 15, x + 1 : x + 15] for n in range(2) for x, y in corners[n]
    ]  # the centre 14 of 16 pixels, in the order n·K + k
    assert torch.equal(found, torch.stack(wanted))


def test_inside_a_box_it_is_crop_then_warp_then_centre() -> None:
    frames = draw(1, 3, 64, 64)
    boxes = torch.tensor([[[8, 16, 24, 56], [3, 5, 61, 13]]]) / 64
    found = CutRegions(56, 56 / 64)(frames, boxes)
    for k, (x1, y1, x2, y2) in enumerate((boxes[0] * 64).int().tolist()):
        crop = frames[:, :, y1:y2, x1:x2]
        warped = torch.nn.functional.interpolate(crop, (64, 64), mode="bilinear", align_corners=False)
        np.testing.assert_allclose(found[k].numpy(), warped[0, :, 4:60, 4:60].numpy(), rtol=0, atol=5e-3)


def test_far_off_and_degenerate_boxes_give_border_colours() -> None:
    frame = draw(1, 3, 6, 9)
    boxes = torch.tensor(
        [
            [
                [5.0, 5.0, 6.0, 6.0],
                [-3.0, 0.2, -2.0, 0.2],
                [-1e30, -1e30, -1e29, -1e29],
                [1e37, 1e37, 1e38, 1e38],
                [0.5, 0.5, 0.5, 0.5],
                [0.0, 0.0, 0.0, 0.0],
            ]
        ]
    )
    found = CutRegions(4)(frame, boxes)
    assert found.isfinite().all()
    corner, opposite = frame[0, :, 0, 0], frame[0, :, -1, -1]
    for row, colour in ((0, opposite), (2, corner), (3, opposite), (5, corner)):
        assert torch.equal(found[row], colour[:, None, None].expand(3, 4, 4))
    flat = sample(frame[0].double().numpy(), 0.0, 0.2 * 6 - 0.5)
    np.testing.assert_allclose(found[1].numpy(), np.broadcast_to(flat[:, None, None], (3, 4, 4)), atol=1e-3)
    centre = sample(frame[0].double().numpy(), 4.0, 2.5)
    np.testing.assert_allclose(found[4].numpy(), np.broadcast_to(centre[:, None, None], (3, 4, 4)), atol=1e-3)


def test_swapped_corners_mirror() -> None:
    frame, cutter = draw(1, 3, 12, 12), CutRegions(5)
    plain = cutter(frame, torch.tensor([[[0.25, 0.125, 0.75, 0.5]]]))
    mirrored = cutter(frame, torch.tensor([[[0.75, 0.125, 0.25, 0.5]]]))
    np.testing.assert_allclose(mirrored.numpy(), plain.flip(-1).numpy(), rtol=0, atol=1e-3)


@pytest.mark.parametrize(("size", "share"), [(0, 0.5), (-3, 0.5), (8, 0.0), (8, 1.1), (8, float("nan"))])
def test_impossible_cuts_are_refused(size: int, share: float) -> None:
    with pytest.raises(UsageError, match="expected"):
        CutRegions(size, share)


def test_fifty_boxes_cover_the_image_at_four_scales() -> None:
    boxes = grid_boxes()
    assert boxes.dtype == torch.float32
    assert boxes.shape == (50, 4)
    assert len({tuple(b) for b in boxes.tolist()}) == 50
    assert (present_boxes(boxes) == 1).all()
    assert boxes.min() == 0
    assert boxes.max() == 1
    assert boxes[0].tolist() == [0, 0, 1, 1]
    sides = boxes[:, 2:] - boxes[:, :2]
    wanted = np.repeat([1, 2 / 3, 1 / 2, 2 / 7], [1, 4, 9, 36])
    np.testing.assert_allclose(sides.numpy(), np.stack([wanted, wanted], 1), rtol=1e-6)
    # Every level alone covers the image, and every place but a rim lies in several boxes of the finest.
    places = (torch.arange(97) + 0.5) / 97
    for first, last in ((0, 1), (1, 5), (5, 14), (14, 50)):
        x1, y1, x2, y2 = boxes[first:last].T[..., None]
        across = (x1 <= places) & (places <= x2)
        down = (y1 <= places) & (places <= y2)
        covered = (down[:, :, None] & across[:, None, :]).sum(0)
        assert covered.min() >= 1
        if first:
            assert covered[48, 48] >= 4


def test_boxes_stand_in_reading_order() -> None:
    assert (grid_boxes(5)[1:] * 3).round().tolist() == [
        [0, 0, 2, 2],
        [1, 0, 3, 2],
        [0, 1, 2, 3],
        [1, 1, 3, 3],
    ]


@pytest.mark.parametrize("count", [1, 5, 10, 14, 17, 30, 50, 55])
def test_other_pyramids(count: int) -> None:
    boxes = grid_boxes(count)
    assert len({tuple(b) for b in boxes.tolist()}) == count
    assert boxes[0].tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize(
    ("count", "says"),
    [(49, "expected 41 or 50"), (2, "expected 1 or 5"), (0, "expected 1"), (-4, "expected 1")],
)
def test_a_count_that_is_no_pyramid_names_its_neighbours(count: int, says: str) -> None:
    with pytest.raises(UsageError, match=f"{says}$"):
        grid_boxes(count)


def test_a_box_without_area_is_absent() -> None:
    boxes = torch.tensor(
        [
            [[0.1, 0.1, 0.2, 0.2], [0.3, 0.1, 0.3, 0.2], [0.3, 0.1, 0.2, 0.2]],
            [[0.1, 0.3, 0.2, 0.2], [0.1, 0.2, 0.4, 0.2], [0.0, 0.0, 1.0, 1e-6]],
        ]
    )
    assert torch.equal(present_boxes(boxes), torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]))


def test_the_exported_graph_agrees() -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="runs the exported graph")
    pytest.importorskip("onnxscript", reason="torch's exporter needs it")
    cutter = CutRegions(14)
    batch = torch.export.Dim("batch", min=1, max=4096)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            cutter,
            (torch.zeros(2, 3, 20, 31), torch.zeros(2, 4, 4)),
            dynamo=True,
            opset_version=22,
            dynamic_shapes=({0: batch}, {0: batch}),
            verbose=False,
        )
    model = program.model_proto
    kinds = [node.op_type for node in model.graph.node]
    assert kinds.count("GridSample") == 1
    assert not {"NonZero", "If", "Loop"} & set(kinds)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [i.name for i in session.get_inputs()]
    for count in (1, 3):
        frames = draw(count, 3, 20, 31)
        boxes = torch.from_numpy(np.random.default_rng(count).uniform(-0.2, 1.2, (count, 4, 4))).float()
        boxes[0, 0] = torch.tensor([-1e30, 0.5, 1e30, 0.5])
        (found,) = session.run(None, {names[0]: frames.numpy(), names[1]: boxes.numpy()})
        wanted = cutter(frames, boxes)
        assert found.shape == (4 * count, 3, 14, 14)
        np.testing.assert_allclose(found, wanted.numpy(), rtol=0, atol=5e-3)
