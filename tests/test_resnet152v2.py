"""The pre-activation ResNet-152: sizes, arithmetic by MXNet's names, crops, keys and graph."""

from __future__ import annotations

import contextlib
import io
import struct
import warnings
from math import prod
from typing import Any

import numpy as np
import pytest

from vsa_rt.errors import CheckpointError, UsageError

torch = pytest.importorskip("torch", reason="the network is built in torch")

from torch import nn
from torch.nn import functional

from vsa_rt.export.checkpoint import load_weights
from vsa_rt.export.mxnet import read_params
from vsa_rt.export.networks.resnet152v2 import IGNORED, Crops, ResNet152V2, keys_from_mxnet

State = dict[str, Any]
FULL = ((3, 8, 36, 3), (256, 512, 1024, 2048))
#: Small, but with plain shortcuts in a stage with stride and in one without.
UNITS, WIDTHS, SIZE = (2, 1, 2, 1), (16, 24, 32, 40), 56
CLASSES = 11_221


def mxnet_shapes(
    units: tuple[int, ...], widths: tuple[int, ...], classes: int = 0
) -> dict[str, tuple[int, ...]]:
    """Names and shapes in the zoo's ``resnet-152-0000.params``, written from tornadomeet's symbol."""
    shapes: dict[str, tuple[int, ...]] = {}

    def norm(name: str, channels: int) -> None:
        shapes[f"arg:{name}_gamma"] = shapes[f"arg:{name}_beta"] = (channels,)
        shapes[f"aux:{name}_moving_mean"] = shapes[f"aux:{name}_moving_var"] = (channels,)

    norm("bn_data", 3)
    inputs = widths[0] // 4
    shapes["arg:conv0_weight"] = (inputs, 3, 7, 7)
    norm("bn0", inputs)
    for i, (count, width) in enumerate(zip(units, widths, strict=True)):
        for j in range(count):
            unit = f"stage{i + 1}_unit{j + 1}"
            norm(f"{unit}_bn1", inputs)
            shapes[f"arg:{unit}_conv1_weight"] = (width // 4, inputs, 1, 1)
            norm(f"{unit}_bn2", width // 4)
            shapes[f"arg:{unit}_conv2_weight"] = (width // 4, width // 4, 3, 3)
            norm(f"{unit}_bn3", width // 4)
            shapes[f"arg:{unit}_conv3_weight"] = (width, width // 4, 1, 1)
            if j == 0:
                shapes[f"arg:{unit}_sc_weight"] = (width, inputs, 1, 1)
            inputs = width
    norm("bn1", inputs)
    if classes:
        shapes |= {"arg:fc1_weight": (classes, inputs), "arg:fc1_bias": (classes,)}
    return shapes


def mxnet_state(seed: int = 0, classes: int = 5) -> State:
    """Seeded weights of the small network under MXNet's names; no statistic or scale is neutral."""
    generator = torch.Generator().manual_seed(seed)
    state: State = {}
    for name, shape in mxnet_shapes(UNITS, WIDTHS, classes).items():
        noise = torch.randn(shape, generator=generator)
        if name.endswith("_weight"):
            state[name] = noise * (2 / noise[0].numel()) ** 0.5
        elif name.endswith(("_gamma", "_moving_var")):
            state[name] = 0.5 + noise.abs()
        else:
            state[name] = noise * 0.3
    state["aux:bn_data_moving_mean"] += 120
    state["aux:bn_data_moving_var"] *= 4000
    return state


def small(crops: Crops = "center", state: State | None = None) -> ResNet152V2:
    network = ResNet152V2(crops, units=UNITS, widths=WIDTHS, size=SIZE).eval().requires_grad_(False)
    load_weights(network, keys_from_mxnet(mxnet_state() if state is None else state), "file", IGNORED)
    return network


def pictures(count: int, side: int = 64, seed: int = 1) -> Any:
    return torch.rand((count, 3, side, side), generator=torch.Generator().manual_seed(seed)) * 255


def by_name(state: State, views: Any) -> Any:
    """The symbol evaluated in float64, layer by layer, from MXNet's names; nothing of the module is used."""
    weights = {k.split(":")[1]: v.double() for k, v in state.items()}

    def norm(x: Any, name: str) -> Any:
        part = {
            k: weights[f"{name}_{k}"][:, None, None] for k in ("gamma", "beta", "moving_mean", "moving_var")
        }
        gamma = 1.0 if name == "bn_data" else part["gamma"]  # fix_gamma
        return gamma * (x - part["moving_mean"]) / (part["moving_var"] + 2e-5).sqrt() + part["beta"]

    def conv(x: Any, name: str, stride: int = 1) -> Any:
        kernel = weights[f"{name}_weight"]
        outputs, _, side, _ = kernel.shape
        columns = functional.unfold(x, side, padding=side // 2, stride=stride)
        high = (x.shape[2] - 1) // stride + 1
        return (kernel.reshape(outputs, -1) @ columns).reshape(len(x), outputs, high, -1)

    def relu(x: Any) -> Any:
        return x * (x > 0)

    x = relu(norm(conv(norm(views.double(), "bn_data"), "conv0", 2), "bn0"))
    count, channels, high, _ = x.shape
    windows = functional.unfold(x, 3, padding=1, stride=2)  # pads with zeros: the ReLU left nothing below
    x = windows.reshape(count, channels, 9, -1).amax(2).reshape(count, channels, (high - 1) // 2 + 1, -1)
    for i in range(1, 5):
        for j in range(1, UNITS[i - 1] + 1):
            unit, stride = f"stage{i}_unit{j}", 2 if i > 1 and j == 1 else 1
            a = relu(norm(x, f"{unit}_bn1"))
            y = relu(norm(conv(a, f"{unit}_conv1"), f"{unit}_bn2"))
            y = relu(norm(conv(y, f"{unit}_conv2", stride), f"{unit}_bn3"))
            x = conv(y, f"{unit}_conv3") + (conv(a, f"{unit}_sc", stride) if j == 1 else x)
    return relu(norm(x, "bn1")).sum((2, 3)) / (x.shape[2] * x.shape[3])


def mxnet_name(key: str) -> str:
    """The way back: MXNet's name of one of the module's keys."""
    *path, kind = key.split(".")
    layer = path[-1] if len(path) == 1 else f"stage{int(path[1]) + 1}_unit{int(path[2]) + 1}_{path[3]}"
    if "conv" in layer or layer.endswith("sc"):
        return f"arg:{layer}_weight"
    prefix, name = {
        "weight": ("arg", "gamma"),
        "bias": ("arg", "beta"),
        "running_mean": ("aux", "moving_mean"),
        "running_var": ("aux", "moving_var"),
    }[kind]
    return f"{prefix}:{layer}_{name}"


@pytest.fixture(scope="module")
def full() -> ResNet152V2:
    """The published size, without memory behind it."""
    with torch.device("meta"):
        return ResNet152V2().eval().requires_grad_(False)


def multiply_adds(units: tuple[int, ...], widths: tuple[int, ...], classes: int) -> int:
    """By pencil: every kernel once per pixel of its output, for views of 224 x 224."""
    total = 0
    for name, shape in mxnet_shapes(units, widths, classes).items():
        side = {"arg:conv0_weight": 112, "arg:fc1_weight": 1}.get(name, 0)
        if "stage" in name and len(shape) == 4:
            # Stages halve from 56 on; the first 1 x 1 convolution of a stage lies before its stride.
            stage = int(name[9])
            side = 56 >> (stage - 1 - (stage > 1 and name.endswith("unit1_conv1_weight")))
        total += prod(shape) * side**2
    return total


# The published figures: 58.14 M parameters and 11.51 G multiply-adds, 81.13 M with the 11,221-way classifier.
@pytest.mark.parametrize(
    ("classes", "millions", "giga"),
    [(0, 58.14, 11.51), (CLASSES, 81.13, 11.53)],
    ids=["trunk", "with-classifier"],
)
def test_parameters_and_multiply_adds_are_the_published_ones(
    full: ResNet152V2, classes: int, millions: float, giga: float
) -> None:
    network = nn.Sequential(full, nn.Linear(full.width, classes, device="meta")) if classes else full
    counted = 0

    def count(module: Any, _: Any, output: Any) -> None:
        nonlocal counted
        counted += output.numel() * module.weight[0].numel()

    layers = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    handles = [layer.register_forward_hook(count) for layer in layers]
    with torch.inference_mode():
        out = network(torch.empty(1, 3, 256, 256, device="meta"))
    for handle in handles:  # the network is other tests' too
        handle.remove()
    assert out.shape == (1, classes or 2048)
    parameters = sum(p.numel() for p in network.parameters())
    shapes = mxnet_shapes(*FULL, classes)
    assert parameters == sum(prod(shape) for name, shape in shapes.items() if name.startswith("arg:"))
    assert round(parameters / 1e6, 2) == millions
    assert counted == multiply_adds(*FULL, classes)
    assert round(counted / 1e9, 2) == giga


def test_layers_and_sizes_are_those_of_the_symbol(full: ResNet152V2) -> None:
    convolutions = [m for m in full.modules() if isinstance(m, nn.Conv2d)]
    norms = [m for m in full.modules() if isinstance(m, nn.BatchNorm2d)]
    # 50 units of three, the stem, and a shortcut per stage; 152 with the classifier for the latter.
    assert len(convolutions) == 50 * 3 + 1 + 4
    assert not any(m.bias is not None for m in convolutions)
    assert len(norms) == 50 * 3 + 3
    assert {m.eps for m in norms} == {2e-5}
    assert (full.width, full.view_size, full.resized) == (2048, 224, 256)


def test_the_full_files_keys_and_shapes_are_the_modules(full: ResNet152V2) -> None:
    shapes = mxnet_shapes(*FULL, CLASSES)
    renamed = keys_from_mxnet({k: torch.empty(shape, device="meta") for k, shape in shapes.items()})
    left_out = {k for k in renamed if k.startswith(IGNORED)}
    assert left_out == {"fc1.weight", "fc1.bias"}
    own = {k: v for k, v in full.state_dict().items() if not k.endswith("num_batches_tracked")}
    kept = {k: v.shape for k, v in renamed.items() if k not in left_out}
    assert kept == {k: v.shape for k, v in own.items()}


@pytest.mark.parametrize("side", [SIZE, 57, 63, 96])
def test_the_features_are_those_of_the_symbol(side: int) -> None:
    views = pictures(2, side)
    wanted = by_name(mxnet_state(), views)
    found = small().double().encode(views.double())
    assert found.shape == (2, WIDTHS[-1])
    assert wanted.std() > 0.1
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)


def test_the_convolved_shortcut_takes_the_activated_input() -> None:
    """With every bn1 far below zero nothing passes a unit's ReLU, so the image cannot be seen behind it."""
    state = mxnet_state()
    for name, tensor in state.items():
        if "unit1_bn1_beta" in name:
            tensor.fill_(-1e4)
        if "conv3" in name:
            tensor.zero_()
    found = small(state=state).encode(pictures(2, SIZE))
    assert torch.equal(found[0], found[1])
    dark = -state["aux:bn1_moving_mean"] / (state["aux:bn1_moving_var"] + 2e-5).sqrt()
    wanted = (state["arg:bn1_gamma"] * dark + state["arg:bn1_beta"]).relu()
    torch.testing.assert_close(found[0], wanted, rtol=1e-5, atol=1e-5)


def test_the_stored_scale_of_the_pixels_is_ignored() -> None:
    planted = mxnet_state() | {"arg:bn_data_gamma": torch.full((3,), 7.0)}
    other = mxnet_state() | {"arg:bn_data_gamma": torch.full((3,), -1.0)}
    views = pictures(1, SIZE)
    assert torch.equal(small(state=planted).encode(views), small(state=other).encode(views))
    assert torch.equal(small(state=planted).bn_data.weight, torch.ones(3))
    assert torch.equal(planted["arg:bn_data_gamma"], torch.full((3,), 7.0))  # the caller's is left alone
    scaled = mxnet_state()
    scaled["arg:bn0_gamma"] *= 7  # another layer's gamma does count
    assert not torch.allclose(small(state=scaled).encode(views), small().encode(views))


def test_ten_crops_are_the_mean_of_ten_crops() -> None:
    images = pictures(3).double()
    network = small("ten").double()
    far = 64 - SIZE
    wanted = []
    for image in images:
        mirrored = image[:, :, torch.arange(63, -1, -1)]
        crops = [
            picture[:, y : y + SIZE, x : x + SIZE]
            for picture in (image, mirrored)
            for y, x in ((far // 2, far // 2), (0, 0), (far, 0), (0, far), (far, far))
        ]
        features = [network.encode(crop[None])[0] for crop in crops]
        assert len({tuple(f.tolist()) for f in features}) == 10
        wanted.append(torch.stack(features).mean(0))
    torch.testing.assert_close(network(images), torch.stack(wanted), rtol=1e-12, atol=1e-12)
    assert network.views(images).shape == (30, 3, SIZE, SIZE)
    # Row v * N + n is image n's view v: the second image's top right corner is row 3 * 3 + 1.
    assert torch.equal(network.views(images)[10], images[1, :, :SIZE, far:])


def test_the_centre_crop_is_the_centre() -> None:
    images = pictures(2)
    torch.testing.assert_close(small()(images), small().encode(images[:, :, 4:60, 4:60]))


def test_the_published_sizes_crop_at_16_and_32(full: ResNet152V2) -> None:
    row = torch.arange(256.0).expand(1, 3, 256, 256)
    assert full.views(row)[0, 0, 0, [0, -1]].tolist() == [16, 239]
    with torch.device("meta"):
        ten = ResNet152V2("ten")
    starts = ten.views(row)[:, 0, 0, 0].tolist()
    assert starts == [16, 0, 0, 32, 32, 239, 255, 255, 223, 223]
    assert ten.views(row.mT)[:, 0, 0, 0].tolist() == [16, 0, 32, 0, 32] * 2


@pytest.mark.parametrize("shape", [(1, 3, 56, 56), (1, 3, 64, 65), (3, 64, 64)], ids=str)
def test_an_image_of_another_size_is_refused(shape: tuple[int, ...]) -> None:
    for network in (small(), small("ten")):
        with pytest.raises(UsageError, match=r"expected \(N, 3, 64, 64\)"):
            network(torch.zeros(shape))


@pytest.mark.parametrize(
    "arguments",
    [
        {"crops": "five"},
        {"units": (1, 2)},
        {"units": (), "widths": ()},
        {"units": (1, 0, 1, 1)},
        {"widths": (16, 18, 32, 40)},
        {"widths": (16, 0, 32, 40)},
        {"size": 225},
        {"size": 0},
    ],
    ids=str,
)
def test_numbers_that_make_no_network_are_refused(arguments: dict[str, Any]) -> None:
    small_arguments: dict[str, Any] = {"units": UNITS, "widths": WIDTHS, "size": SIZE}
    with pytest.raises(UsageError):
        ResNet152V2(**(small_arguments | arguments))


def test_the_keys_survive_the_way_to_mxnet_and_back() -> None:
    network = small()
    own = {k: v for k, v in network.state_dict().items() if not k.endswith("num_batches_tracked")}
    stored = {mxnet_name(k): v for k, v in own.items()}
    assert stored.keys() == mxnet_shapes(UNITS, WIDTHS).keys()
    again = ResNet152V2(units=UNITS, widths=WIDTHS, size=SIZE)
    load_weights(again, keys_from_mxnet(stored), "file")
    assert all(torch.equal(again.state_dict()[k], v) for k, v in own.items())
    plain = {k.split(":")[1]: v for k, v in stored.items()}  # files without the prefixes
    assert keys_from_mxnet(plain).keys() == own.keys()


@pytest.mark.parametrize(
    ("drop", "add", "says"),
    [
        ("arg:stage3_unit2_conv2_weight", {}, r"missing stages\.2\.1\.conv2\.weight$"),
        ("aux:bn_data_moving_var", {}, r"missing bn_data\.running_var$"),
        ("arg:bn_data_gamma", {}, r"missing bn_data\.weight$"),
        ("", {"arg:stage5_unit1_conv1_weight": (4, 4)}, r"unexpected stages\.4\.0\.conv1\.weight$"),
        ("", {"arg:stage4_unit1_conv4_weight": (4,)}, "unexpected arg:stage4_unit1_conv4_weight$"),
        ("", {"arg:stage01_unit1_conv1_weight": (4,)}, "unexpected arg:stage01_unit1_conv1_weight$"),
        ("", {f"arg:stage{'9' * 5000}_unit1_conv1_weight": (4,)}, "unexpected arg:stage9"),
        ("", {"arg:conv0_bias": (4,)}, "unexpected arg:conv0_bias$"),
        ("", {"arg:sc_weight": (4,)}, "unexpected arg:sc_weight$"),
        ("", {"fc10_weight": (4,)}, "unexpected fc10_weight$"),
        ("", {"rubbish": (1,)}, "unexpected rubbish$"),
        ("", {"arg:conv0_weight": (4, 3)}, r"mis-shaped conv0\.weight \(4, 3\) instead of \(4, 3, 7, 7\)$"),
        ("", {"arg:bn_data_gamma": (4,)}, r"mis-shaped bn_data\.weight \(4,\) instead of \(3,\)$"),
        (
            "arg:stage2_unit1_sc_weight",
            {"arg:bn9_beta": (1,)},
            r"missing .*1\.0\.sc.*unexpected arg:bn9_beta$",
        ),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_keys_that_do_not_fit_are_named(drop: str, add: dict[str, tuple[int, ...]], says: str) -> None:
    state = mxnet_state() | {k: torch.zeros(shape) for k, shape in add.items()}
    state.pop(drop, None)
    network = ResNet152V2(units=UNITS, widths=WIDTHS, size=SIZE)
    with pytest.raises(CheckpointError, match=says):
        load_weights(network, keys_from_mxnet(state), "file", IGNORED)


@pytest.mark.parametrize("twin", ["aux:conv0_weight", "conv0_weight", "conv0.weight"])
def test_two_names_of_one_tensor_are_refused(twin: str) -> None:
    with pytest.raises(CheckpointError, match=f"'{twin}' and another both mean 'conv0.weight'"):
        keys_from_mxnet(mxnet_state() | {twin: torch.zeros(4, 3, 7, 7)})


def test_a_params_file_is_loaded_from_its_bytes() -> None:
    state = mxnet_state(classes=3)
    data = struct.pack("<QQQ", 0x112, 0, len(state))
    for tensor in state.values():
        data += struct.pack(f"<Iii{tensor.ndim}q", 0xF993FAC9, 0, tensor.ndim, *tensor.shape)
        data += struct.pack("<iii", 1, 0, 0) + tensor.numpy().astype("<f4").tobytes()
    data += struct.pack("<Q", len(state))
    data += b"".join(struct.pack("<Q", len(name)) + name.encode() for name in state)
    network = small(state=read_params(data, "file"))
    views = pictures(1, SIZE)
    torch.testing.assert_close(network.encode(views), by_name(state, views).float(), rtol=1e-4, atol=1e-4)


def test_the_exported_graph_gives_the_same_features_at_other_batches() -> None:
    pytest.importorskip("onnxscript", reason="torch exports with it")
    onnxruntime = pytest.importorskip("onnxruntime", reason="the graph is run with it")
    network = small("ten")
    batch = torch.export.Dim("batch", min=1, max=4096)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            network,
            (pictures(2),),
            dynamo=True,
            opset_version=22,
            dynamic_shapes=({0: batch},),
            verbose=False,
        )
    operators = {node.op_type for node in program.model_proto.graph.node}
    assert not operators & {"NonZero", "GatherND", "Loop", "If"}
    data = program.model_proto.SerializeToString()
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    for count in (1, 3):
        images = pictures(count, seed=count)
        (found,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
        np.testing.assert_allclose(found, network(images).numpy(), rtol=1e-4, atol=1e-4)
