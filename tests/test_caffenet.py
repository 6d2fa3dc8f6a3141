"""CaffeNet and what ASM 2015 makes of it: layers, crops, map, normalisation in half, and its checkpoints.

Sizes and counts: BVLC/caffe's ``bvlc_reference_caffenet`` and Campos et al. 2015, tables of layers and ablations.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the network is a torch module")
onnx = pytest.importorskip("onnx", reason="graphs are ONNX's")
pytest.importorskip("google.protobuf", reason="caffemodels are protobuf messages")
pytest.importorskip("timm", reason="it is made beside timm's networks")
from torch.nn import functional

from vsa_rt.contracts import ResizeSpec
from vsa_rt.errors import CheckpointError, UsageError
from vsa_rt.export.checkpoint import load_weights
from vsa_rt.export.half import HalfExecutor
from vsa_rt.export.networks.caffenet import CaffeNet, CrossChannelNorm, keys_from_caffe
from vsa_rt.export.transforms import reference_transform

#: What each layer of one crop gives, flattened: the sizes of the layer study.
FLATTENED = {
    "conv1": 290_400,
    "pool1": 69_984,
    "norm1": 69_984,
    "conv2": 186_624,
    "pool2": 43_264,
    "norm2": 43_264,
    "conv3": 64_896,
    "conv4": 64_896,
    "conv5": 43_264,
    "pool5": 9_216,
    "fc6": 4_096,
    "fc7": 4_096,
    "fc8": 1_000,
}
#: Trained parameters of each layer.
PARAMETERS = {
    "conv1": 34_944,
    "conv2": 307_456,
    "conv3": 885_120,
    "conv4": 663_936,
    "conv5": 442_624,
    "fc6": 37_752_832,
    "fc7": 16_781_312,
}
#: Blue, green, red: means of ``ilsvrc_2012_mean.npy``.
MEANS = (104.00699, 116.66877, 122.67891)
Blobs = dict[str, list[Any]]


@pytest.fixture(scope="module")
def published() -> Blobs:
    """Blobs as a ``.caffemodel`` of the fine-tuned network has them, small enough that nothing saturates."""
    draw = np.random.default_rng(0)

    def blob(*shape: int) -> Any:
        fan = int(np.prod(shape[1:]))
        return (draw.standard_normal(shape, np.float32) * np.float32(fan**-0.5)).astype(np.float32)

    shapes = {
        "conv1": (96, 3, 11, 11),
        "conv2": (256, 48, 5, 5),
        "conv3": (384, 256, 3, 3),
        "conv4": (384, 192, 3, 3),
        "conv5": (256, 192, 3, 3),
        "fc6": (4096, 9216),
        "fc7": (4096, 4096),
        "fc8_twitter": (2, 4096),
    }
    return {name: [blob(*shape), blob(shape[0], 1)[:, 0]] for name, shape in shapes.items()}


def state(blobs: Blobs, suffix: str = "") -> dict[str, Any]:
    """Blobs as the reader names them."""
    named = {f"{name}{suffix if name.startswith('fc') else ''}": pair for name, pair in blobs.items()}
    return {
        f"{name}.{kind}": torch.from_numpy(b) for name, pair in named.items() for kind, b in zip(("weight", "bias"), pair, strict=True)
    }  # fmt: skip


def loaded(network: CaffeNet, blobs: Blobs) -> CaffeNet:
    found = keys_from_caffe(state(blobs), network)
    load_weights(network, {k: v for k, v in found.items() if not k.startswith("head.")}, "blobs")
    return network.eval()


def as_published(blobs: Blobs, bgr: Any, top: str) -> Any:
    """The deploy file's layers, written out with torch's functions over a crop ``(N, 3, 227, 227)`` in BGR."""
    functional: Any = torch.nn.functional  # its overloads do not take a pair as two arguments
    t = {name: [torch.from_numpy(b).double() for b in pair] for name, pair in blobs.items()}

    def norm(x: Any) -> Any:
        return functional.local_response_norm(x, 5, 1e-4, 0.75, 1.0)

    def pool(x: Any) -> Any:
        return functional.max_pool2d(x, 3, 2, ceil_mode=True)

    x = functional.relu(functional.conv2d(bgr.double(), *t["conv1"], stride=4))
    x = norm(pool(x))
    x = norm(pool(functional.relu(functional.conv2d(x, *t["conv2"], padding=2, groups=2))))
    x = functional.relu(functional.conv2d(x, *t["conv3"], padding=1))
    x = functional.relu(functional.conv2d(x, *t["conv4"], padding=1, groups=2))
    x = pool(functional.relu(functional.conv2d(x, *t["conv5"], padding=1, groups=2))).flatten(1)
    for name in ("fc6", "fc7")[: {"pool5": 0, "fc6": 1, "fc7": 2}[top]]:
        x = functional.relu(functional.linear(x, *t[name]))
    return x


def test_every_layer_gives_what_the_layer_study_lists() -> None:
    with torch.device("meta"):
        network = CaffeNet("fc8").eval()
        seen: dict[str, int] = {}
        for name in FLATTENED:
            network.get_submodule(name).register_forward_hook(
                lambda module, given, found, name=name: seen.update({name: found[0].numel()})
            )
        network(torch.empty(1, 3, 256, 256))
        parameters = {n: sum(p.numel() for p in network.get_submodule(n).parameters()) for n in PARAMETERS}
    assert seen == FLATTENED
    assert parameters == PARAMETERS


@pytest.mark.parametrize(("top", "width"), [("pool5", 9216), ("fc6", 4096), ("fc7", 4096)])
def test_features_are_those_of_the_published_layers_over_bgr(published: Blobs, top: Any, width: int) -> None:
    network = loaded(CaffeNet(top), published)
    pixels = np.random.default_rng(1).uniform(0, 255, (2, 256, 256, 3))
    rgb = torch.from_numpy(pixels - np.array(MEANS[::-1])).float().permute(0, 3, 1, 2)
    # As caffe.io prepares it: the centre, then blue first.
    crop = (pixels[:, 14:241, 14:241, ::-1] - np.array(MEANS)).transpose(0, 3, 1, 2)
    with torch.inference_mode():
        found = network(rgb)
        wanted = as_published(published, torch.from_numpy(crop), top)
    assert found.shape == (2, width)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))


def test_ten_crops_are_four_corners_the_centre_and_their_mirror_images(published: Blobs) -> None:
    network = loaded(CaffeNet("pool5", oversample=True), published)
    once = loaded(CaffeNet("pool5"), published)
    image = torch.randn(2, 3, 256, 256, generator=torch.Generator().manual_seed(0)) * 60
    places = [(0, 0), (0, 29), (29, 0), (29, 29), (14, 14)]  # caffe.io.oversample: top, left
    crops = [image[:, :, y : y + 227, x : x + 227] for y, x in places]
    crops += [crop.flip(3) for crop in crops]
    with torch.inference_mode():
        found = network(image).reshape(2, 10, 9216)
        for number, crop in enumerate(crops):
            whole = torch.zeros(2, 3, 256, 256)
            whole[:, :, 14:241, 14:241] = crop  # where the centre is cut
            torch.testing.assert_close(found[:, number], once(whole), rtol=1e-4, atol=1e-3)


@pytest.fixture(scope="module")
def mapped() -> Any:
    """A map over fc6 alone, drawn: 38 million weights are enough to look at positions."""
    torch.manual_seed(0)
    return CaffeNet("fc6", map=True).eval()


def test_a_map_has_eight_positions_a_side_which_move_with_the_image(mapped: Any) -> None:
    image = torch.randn(1, 3, 451, 451 + 32, generator=torch.Generator().manual_seed(0)) * 60
    with torch.inference_mode():
        left = mapped(image[..., :451]).reshape(8, 8, 4096)
        right = mapped(image[..., 32:].contiguous()).reshape(8, 8, 4096)
    # Padding reaches the outer positions; those in the middle see the same pixels one place further.
    torch.testing.assert_close(left[2:6, 3:6], right[2:6, 2:5], rtol=1e-3, atol=1e-4)
    assert not torch.allclose(left[2:6, 2:5], right[2:6, 2:5], rtol=1e-2)


def test_a_dense_layer_over_a_map_is_itself_at_every_window(mapped: Any) -> None:
    maps = torch.randn(1, 256, 8, 7, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        found = mapped.fc6(maps)
        alone = mapped.fc6(maps[:, :, 1:7, 1:7].flatten(1))
    assert found.shape == (1, 4096, 3, 2)
    torch.testing.assert_close(found[:, :, 1, 1], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("top", "more"), [("fc9", {}), ("fc7", {"oversample": True, "map": True}), ("pool5", {"map": True})])  # fmt: skip
def test_options_that_make_no_network_are_refused(top: Any, more: dict[str, bool]) -> None:
    with pytest.raises(UsageError, match="top"):
        CaffeNet(top, **more)


def test_an_image_of_another_size_is_refused() -> None:
    with torch.device("meta"), pytest.raises(UsageError, match="expected \\(N, 3, 256, 256\\)"):
        CaffeNet("pool5")(torch.empty(1, 3, 227, 227))


def test_the_warp_is_that_of_scikit_image_without_antialiasing(photographs: list[Any]) -> None:
    transform = pytest.importorskip("skimage.transform", reason="caffe.io resizes with scikit-image")
    from PIL import Image

    warp = reference_transform(ResizeSpec(height=256, width=256, fit="warp", kernel="opencv-bilinear"))
    for path in photographs[:4]:
        picture = Image.open(path).convert("RGB")
        wanted = transform.resize(
            np.asarray(picture) / 255, (256, 256), order=1, anti_aliasing=False, mode="edge"
        )
        gap = np.abs(warp(picture).astype(np.float64) - wanted * 255)
        # Bytes are half a level away, and OpenCV's weights are rounded to 1/2048.
        assert gap.max() < 0.8


# --- normalisation


def test_normalisation_is_torchs_own_to_the_last_bit() -> None:
    x = torch.rand(2, 12, 5, 5, generator=torch.Generator().manual_seed(0)) * 500
    wanted = functional.local_response_norm(x, 5, 1e-4, 0.75, 1.0)
    torch.testing.assert_close(CrossChannelNorm()(x), wanted, rtol=1e-6, atol=0)


def exported(module: Any) -> Any:
    example = torch.rand(2, 8, 4, 4)
    found = torch.onnx.export(
        module.eval(), (example,), dynamo=True, opset_version=22, input_names=["x"], output_names=["y"], verbose=False
    )  # fmt: skip
    assert found is not None
    return found.model_proto


def in_half(model: Any) -> Any:
    """The graph with every tensor typed half."""
    half = onnx.TensorProto.FLOAT16
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = half
    del model.graph.value_info[:]
    for tensor in model.graph.initializer:
        tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor).astype(np.float16), tensor.name))  # fmt: skip
    return model


def plain_lrn() -> Any:
    """The published formula as one ONNX node."""
    info = onnx.helper.make_tensor_value_info
    node = onnx.helper.make_node("LRN", ["x"], ["y"], name="lrn", alpha=1e-4, beta=0.75, bias=1.0, size=5)
    values = [info(name, onnx.TensorProto.FLOAT16, [2, 8, 4, 4]) for name in "xy"]
    graph = onnx.helper.make_graph([node], "lrn", values[:1], values[1:])
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 22)], ir_version=10)


def test_normalisation_is_one_node_of_the_graph() -> None:
    kinds = [node.op_type for node in exported(CrossChannelNorm()).graph.node]
    assert kinds.count("LRN") == 1
    assert set(kinds) <= {"Mul", "LRN", "Constant"}


def test_normalisation_stays_finite_in_half_where_the_plain_formula_does_not() -> None:
    draw = np.random.default_rng(0)
    # Raw activations of conv1 pass a thousand; the square of 256 is beyond half's 65504.
    x = (draw.uniform(0, 3000, (2, 8, 4, 4)) * (draw.random((2, 8, 4, 4)) > 0.3)).astype(np.float16)
    wanted = functional.local_response_norm(
        torch.from_numpy(x.astype(np.float64)), 5, 1e-4, 0.75, 1.0
    ).numpy()
    plain, safe = HalfExecutor(plain_lrn()), HalfExecutor(in_half(exported(CrossChannelNorm())))
    spoilt = plain.run({"x": x})["y"].astype(np.float64)
    assert not np.allclose(spoilt, wanted, rtol=0.05)  # an infinite sum makes the quotient 0
    found = safe.run({"x": x})["y"].astype(np.float64)
    np.testing.assert_allclose(found, wanted, rtol=6 * 2.0**-11, atol=1e-3)


def test_normalisation_loses_nothing_that_counts_of_small_activations() -> None:
    x = np.random.default_rng(1).uniform(0, 4, (2, 8, 4, 4)).astype(np.float16)
    wanted = functional.local_response_norm(
        torch.from_numpy(x.astype(np.float64)), 5, 1e-4, 0.75, 1.0
    ).numpy()
    found = HalfExecutor(in_half(exported(CrossChannelNorm()))).run({"x": x})["y"].astype(np.float64)
    np.testing.assert_allclose(found, wanted, rtol=4 * 2.0**-11, atol=1e-3)


# --- checkpoints


def test_the_fully_convolutional_files_names_and_shapes_mean_the_same_layers(published: Blobs) -> None:
    deploy = {name: list(pair) for name, pair in published.items()}
    for name, shape in {
        "fc6": (4096, 256, 6, 6),
        "fc7": (4096, 4096, 1, 1),
        "fc8_twitter": (2, 4096, 1, 1),
    }.items():
        deploy[name][0] = published[name][0].reshape(shape)
    network = CaffeNet("fc7")
    dense, conv = keys_from_caffe(state(published), network), keys_from_caffe(state(deploy, "-conv"), network)
    assert dense.keys() == conv.keys()
    assert all(torch.equal(dense[key], conv[key]) for key in dense)
    assert dense["head.weight"].shape == (2, 4096)


@pytest.mark.parametrize(
    ("top", "layers", "head"),
    [
        ("fc7", ("fc8", "fc8_twitter"), "fc8_twitter"),  # the renamed one was trained
        ("fc7", ("fc8",), "fc8"),
        ("fc6", ("fc7_twitter",), "fc7_twitter"),
        ("fc8", ("fc8", "fc9"), "fc9"),
    ],
)
def test_the_layer_above_is_the_head(top: Any, layers: tuple[str, ...], head: str) -> None:
    given = {f"{name}.weight": torch.full((2, 3), float(n)) for n, name in enumerate(layers)}
    with torch.device("meta"):
        network = CaffeNet(top)
    assert torch.equal(keys_from_caffe(given, network)["head.weight"], given[f"{head}.weight"])


def test_layers_above_the_head_are_left_out_and_unknown_ones_are_reported(published: Blobs) -> None:
    with torch.device("meta"):
        network = CaffeNet("pool5")
    found = keys_from_caffe(state(published) | {"conv6.weight": torch.zeros(1)}, network)
    assert "conv6.weight" in found
    assert not [key for key in found if key.startswith(("fc7", "fc8"))]
    with pytest.raises(CheckpointError, match="conv6"):
        load_weights(network, {k: v for k, v in found.items() if not k.startswith("head.")}, "a file")


def test_a_layer_that_is_there_twice_is_refused(published: Blobs) -> None:
    with torch.device("meta"):
        network = CaffeNet("fc7")
    with pytest.raises(CheckpointError, match="twice"):
        keys_from_caffe(state(published) | {"fc6-conv.weight": torch.zeros(1)}, network)


def test_several_layers_that_may_be_the_head_are_refused() -> None:
    with torch.device("meta"):
        network = CaffeNet("fc7")
    given = {f"fc8_{name}.weight": torch.zeros(2, 3) for name in "ab"}
    with pytest.raises(CheckpointError, match="fc8_a, fc8_b may each be the head"):
        keys_from_caffe(given, network)


def test_normalisation_holds_in_half_up_to_what_its_docstring_says() -> None:
    x = np.full((2, 8, 4, 4), 29_000, np.float16)
    wanted = functional.local_response_norm(
        torch.from_numpy(x.astype(np.float64)), 5, 1e-4, 0.75, 1.0
    ).numpy()
    found = HalfExecutor(in_half(exported(CrossChannelNorm()))).run({"x": x})["y"].astype(np.float64)
    np.testing.assert_allclose(found, wanted, rtol=6 * 2.0**-11)
