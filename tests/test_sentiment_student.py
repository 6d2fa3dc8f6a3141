"""The CVPR 2023 student: published keys and sizes, torchvision's arithmetic, checkpoints of either kind, graph.

Keys, stages, counts and map sizes are those of tinglyfeng/sentiment_pretraining (commit da7e482).
"""

from __future__ import annotations

import warnings
from importlib.resources import files
from typing import Any, get_args

import msgspec
import numpy as np
import pytest

from vsa_rt.contracts import Task
from vsa_rt.errors import CheckpointError, UsageError
from vsa_rt.recipe import Recipe

reason = "the network is built of torchvision's layers"
torch = pytest.importorskip("torch", reason=reason)
models = pytest.importorskip("torchvision.models", reason=reason)

from published import saved
from torch import nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from vsa_rt.export.checkpoint import load_weights, read_tensors
from vsa_rt.export.head import LinearHead
from vsa_rt.export.networks.sentiment_student import (
    HEAD,
    IGNORED_TORCHVISION,
    Arch,
    SentimentStudent,
    keys_from_student,
    keys_from_torchvision,
)

State = dict[str, Any]
Shapes = dict[str, tuple[int, ...]]
ARCHS: tuple[Arch, ...] = get_args(Arch)
STAGES = ("stage1", "stage2", "stage3", "stage4")
#: Of each VGG's stages: where it ends among torchvision's layers, and the numbers and outputs of its convolutions.
VGG: dict[str, list[tuple[int, dict[int, int]]]] = {
    "vgg16": [
        (13, {0: 64, 3: 64, 7: 128, 10: 128}),
        (23, {14: 256, 17: 256, 20: 256}),
        (33, {24: 512, 27: 512, 30: 512}),
        (43, {34: 512, 37: 512, 40: 512}),
    ],
    "vgg19": [
        (13, {0: 64, 3: 64, 7: 128, 10: 128}),
        (26, {14: 256, 17: 256, 20: 256, 23: 256}),
        (39, {27: 512, 30: 512, 33: 512, 36: 512}),
        (52, {40: 512, 43: 512, 46: 512, 49: 512}),
    ],
}
#: Of each ResNet: blocks per stage, and whether they are bottlenecks (He et al. 2016, table 1).
RESNET: dict[str, tuple[tuple[int, ...], bool]] = {
    "resnet18": ((2, 2, 2, 2), False),
    "resnet50": ((3, 4, 6, 3), True),
    "resnet101": ((3, 4, 23, 3), True),
}
#: Millions of parameters with a classifier of 8; billions of multiply-adds at 224 and at 256; width of the features.
TABLE: dict[Arch, tuple[float, float, float, int]] = {
    "resnet18": (11.18, 1.81, 2.37, 512),
    "resnet50": (23.52, 4.09, 5.34, 2048),
    "resnet101": (42.52, 7.80, 10.19, 2048),
    "vgg16": (14.73, 15.35, 20.05, 512),
    "vgg19": (20.04, 19.51, 25.48, 512),
}


def norm(place: str, channels: int) -> Shapes:
    kinds = ("weight", "bias", "running_mean", "running_var")
    return {f"{place}.{kind}": (channels,) for kind in kinds} | {f"{place}.num_batches_tracked": ()}


def resnet_shapes(blocks: tuple[int, ...], bottleneck: bool) -> Shapes:
    shapes: Shapes = {"stage1.0.weight": (64, 3, 7, 7), **norm("stage1.1", 64)}
    inputs = 64
    for stage, count in enumerate(blocks):
        inner = 64 * 2**stage
        outputs = 4 * inner if bottleneck else inner
        for block in range(count):
            place = f"stage1.4.{block}" if stage == 0 else f"stage{stage + 1}.{block}"
            chain = [(inner, 1), (inner, 3), (outputs, 1)] if bottleneck else [(inner, 3), (inner, 3)]
            before = inputs
            for number, (after, side) in enumerate(chain, 1):
                shapes[f"{place}.conv{number}.weight"] = (after, before, side, side)
                shapes |= norm(f"{place}.bn{number}", after)
                before = after
            if inputs != outputs:
                shapes[f"{place}.downsample.0.weight"] = (outputs, inputs, 1, 1)
                shapes |= norm(f"{place}.downsample.1", outputs)
            inputs = outputs
    return shapes


def vgg_shapes(stages: list[tuple[int, dict[int, int]]]) -> Shapes:
    shapes: Shapes = {}
    inputs = 3
    for stage, (_, convolutions) in zip(STAGES, stages, strict=True):
        for number, outputs in convolutions.items():
            shapes[f"{stage}.{number}.weight"] = (outputs, inputs, 3, 3)
            shapes[f"{stage}.{number}.bias"] = (outputs,)
            shapes |= norm(f"{stage}.{number + 1}", outputs)
            inputs = outputs
    return shapes


def student_shapes(arch: str) -> Shapes:
    """Names and shapes of a published student without its classifier."""
    return vgg_shapes(VGG[arch]) if arch in VGG else resnet_shapes(*RESNET[arch])


def zeros(arch: str) -> State:
    return {
        k: torch.zeros(s, dtype=torch.int64 if k.endswith("tracked") else torch.float32)
        for k, s in student_shapes(arch).items()
    }


def images(count: int = 2, height: int = 64, width: int = 64, seed: int = 1) -> Any:
    values = np.random.default_rng(seed).normal(size=(count, 3, height, width))
    return torch.from_numpy(values.astype(np.float32))


def on_meta(arch: Arch) -> SentimentStudent:
    with torch.device("meta"):
        return SentimentStudent(arch)


def draw(network: Any) -> Any:
    """Seeded weights and statistics, none of which is neutral."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for layer in network.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                if layer.bias is not None:
                    nn.init.uniform_(layer.bias, -0.1, 0.1)
            elif isinstance(layer, nn.BatchNorm2d):
                nn.init.uniform_(layer.weight, 0.5, 0.8)
                nn.init.uniform_(layer.bias, -0.1, 0.3)
                nn.init.uniform_(layer.running_mean, -0.1, 0.1)  # type: ignore[arg-type]
                nn.init.uniform_(layer.running_var, 0.8, 1.2)  # type: ignore[arg-type]
                layer.num_batches_tracked.fill_(7)  # type: ignore[union-attr]
    return network.eval().requires_grad_(False)


def with_stages_kept(network: SentimentStudent, image: Any) -> tuple[Any, list[Any]]:
    """Features, and what each stage gave, kept as the hook saw it and looked at after the last stage."""
    kept: list[Any] = []
    hooks = [
        network.get_submodule(stage).register_forward_hook(lambda _m, _i, maps: kept.append(maps))
        for stage in STAGES
    ]
    with torch.inference_mode():
        features = network(image)
    for hook in hooks:
        hook.remove()
    return features, kept


@pytest.fixture(scope="module")
def small() -> SentimentStudent:
    made: SentimentStudent = draw(SentimentStudent("resnet18"))
    return made


@pytest.fixture(scope="module")
def classifier() -> State:
    generator = torch.Generator().manual_seed(5)
    return {
        "head.weight": torch.randn(8, 512, generator=generator),
        "head.bias": torch.randn(8, generator=generator),
    }


@pytest.fixture(scope="module")
def amalgamated(small: SentimentStudent, classifier: State) -> State:
    """The amalgamation's tensors: the student, and three teachers of which a few stand for all."""
    student = {f"stu.{k}": v for k, v in (small.state_dict() | classifier).items()}
    teachers = {
        f"{teacher}.{key}": torch.full_like(small.state_dict()[key], 9.0)
        for teacher in ("t_low", "t_mid", "t_high")
        for key in ("stage1.0.weight", "stage4.1.bn2.running_var")
    }
    return teachers | student | {"t_high.head.weight": torch.full((8, 512), 9.0)}


@pytest.mark.parametrize("arch", ARCHS)
def test_keys_and_shapes_are_the_published_ones(arch: Arch) -> None:
    own = {k: tuple(v.shape) for k, v in on_meta(arch).state_dict().items()}
    assert own == student_shapes(arch)


def test_the_published_examples_of_keys_are_there() -> None:
    resnet, vgg = student_shapes("resnet50"), student_shapes("vgg16")
    assert {
        "stage1.0.weight",
        "stage1.1.running_mean",
        "stage1.4.2.conv1.weight",
        "stage2.3.bn3.bias",
    } <= set(resnet)
    assert {"stage2.14.weight", "stage3.24.weight", "stage4.34.weight"} <= set(vgg)


@pytest.mark.parametrize("arch", ARCHS)
def test_parameters_multiply_adds_and_width(arch: Arch) -> None:
    millions, *billions, width = TABLE[arch]
    with torch.device("meta"):
        network = nn.Sequential(SentimentStudent(arch), LinearHead(width, 8)).eval()
    assert round(sum(p.numel() for p in network.parameters()) / 1e6, 2) == millions
    assert network[0].width == width
    for size, wanted in zip((224, 256), billions, strict=True):
        with FlopCounterMode(display=False) as counter, torch.inference_mode():
            assert tuple(network(torch.empty(1, 3, size, size, device="meta")).shape) == (1, 8)
        # A multiply-add is two operations. The table's last digit may be rounded either way.
        assert abs(counter.get_total_flops() / 2e9 - wanted) <= 0.006


@pytest.mark.parametrize("arch", ARCHS)
def test_the_maps_of_an_image_of_256(arch: Arch) -> None:
    features, kept = with_stages_kept(on_meta(arch).eval(), torch.empty(1, 3, 256, 256, device="meta"))
    sides = (128, 64, 32, 16) if arch in VGG else (64, 32, 16, 8)
    assert [tuple(maps.shape[2:]) for maps in kept] == [(side, side) for side in sides]
    assert tuple(features.shape) == (1, kept[-1].shape[1]) == (1, TABLE[arch][3])


def test_another_backbone_is_refused() -> None:
    with pytest.raises(UsageError, match=r"arch 'vgg16_bn' is not known; there are vgg16, vgg19, resnet18"):
        SentimentStudent("vgg16_bn")  # type: ignore[arg-type]


def original(library: str, arch: str) -> tuple[Any, State]:
    """A library's own network without its classifier, and its state with a stand-in for that."""
    name = f"{arch}_bn" if arch in VGG else arch
    with torch.device("meta"):  # a VGG's dense layers are 124 million numbers that nobody looks at
        if library == "timm":
            network = pytest.importorskip("timm", reason="names timm's keys").create_model(name)
        else:
            network = models.get_model(name, weights=None)
    keys = list(network.state_dict())
    for layer in {"fc", "classifier", "pre_logits", "head"} & {n for n, _ in network.named_children()}:
        setattr(network, layer, nn.Identity())
    draw(network.to_empty(device="cpu"))
    state = network.state_dict()
    left = [key for key in keys if key not in state]
    assert left
    assert all(key.startswith(IGNORED_TORCHVISION) for key in left)
    return network, {key: state.get(key, torch.zeros(1)) for key in keys}


def pieces(network: Any, arch: str) -> list[Any]:
    """The original's layers in order, cut where the published code cuts them."""
    if arch in VGG:
        ends = [end for end, _ in VGG[arch]]
        return [network.features[a:b] for a, b in zip([0, *ends[:-1]], ends, strict=True)]
    layers = dict(network.named_children())
    activation = layers.get("relu") or layers["act1"]
    stem = nn.Sequential(layers["conv1"], layers["bn1"], activation, layers["maxpool"], layers["layer1"])
    return [stem, layers["layer2"], layers["layer3"], layers["layer4"]]


@pytest.mark.parametrize("library", ["torchvision", "timm"])
@pytest.mark.parametrize("arch", ARCHS)
def test_imagenet_weights_give_the_original_networks_maps(arch: Arch, library: str) -> None:
    twin, state = original(library, arch)
    network = SentimentStudent(arch).eval()
    load_weights(network, keys_from_torchvision(state, network), "file", IGNORED_TORCHVISION)
    image = images()
    features, kept = with_stages_kept(network, image)
    maps = image
    with torch.inference_mode():
        for piece, found in zip(pieces(twin, arch), kept, strict=True):
            maps = piece(maps.clone())
            assert torch.equal(found, maps)  # also: no later stage wrote into it
            assert float(found.min()) >= 0
    assert float(maps.std()) > 0.01  # there is something to compare
    # The published code pools with adaptive_avg_pool2d.
    torch.testing.assert_close(
        features, functional.adaptive_avg_pool2d(maps, 1).flatten(1), rtol=1e-6, atol=1e-6
    )
    counters = [v for k, v in network.state_dict().items() if k.endswith("num_batches_tracked")]
    assert counters
    assert all(int(counter) == 7 for counter in counters)


@pytest.mark.parametrize(
    ("arch", "change", "says"),
    [
        ("resnet18", {"layer5.0.conv1.weight": 1}, r"unexpected layer5\.0\.conv1\.weight$"),
        ("resnet18", {"features.0.weight": 1}, r"unexpected features\.0\.weight$"),
        ("resnet18", {"conv1": 1}, "unexpected conv1$"),
        ("resnet18", {"conv1.weight": 0}, r"missing stage1\.0\.weight$"),
        ("vgg16", {"features.44.weight": 1}, r"unexpected features\.44\.weight$"),
        ("vgg16", {"features.weight": 1}, r"unexpected features\.weight$"),
        ("vgg16", {"conv1.weight": 1}, r"unexpected conv1\.weight$"),
        ("vgg16", {"features.14.bias": 0}, r"missing stage2\.14\.bias$"),
    ],
)
def test_imagenet_keys_that_do_not_fit_are_named(arch: Arch, change: dict[str, int], says: str) -> None:
    back = {"stage1.0": "conv1", "stage1.1": "bn1", "stage1.4": "layer1"}
    back |= {f"stage{n}": f"layer{n}" for n in (2, 3, 4)}

    def imagenet(key: str) -> str:
        if arch in VGG:
            return f"features.{key.partition('.')[2]}"
        place = next(p for p in back if key.startswith(f"{p}."))
        return back[place] + key.removeprefix(place)

    state = {imagenet(key): tensor for key, tensor in zeros(arch).items()}
    network = on_meta(arch)
    assert keys_from_torchvision(state, network).keys() == network.state_dict().keys()
    for key, added in change.items():
        if added:
            state[key] = torch.zeros(1)
        else:
            del state[key]
    with pytest.raises(CheckpointError, match=f"^file does not fit the network: {says}"):
        load_weights(network, keys_from_torchvision(state, network), "file", IGNORED_TORCHVISION)


def test_two_names_of_one_imagenet_tensor_are_refused() -> None:
    state = {"conv1.weight": torch.zeros(1), "stage1.0.weight": torch.zeros(1)}
    with pytest.raises(
        CheckpointError, match=r"'conv1\.weight' and 'stage1\.0\.weight' both mean 'stage1\.0\.weight'"
    ):
        keys_from_torchvision(state, on_meta("resnet18"))


def around(state: State) -> bytes:
    """What a script of the authors' kind saves, from a network on several GPUs."""
    buffers = {0: {"momentum_buffer": torch.ones(2)}}
    return saved(
        {
            "epoch": 12,
            "arch": "resnet18",
            "state_dict": {f"module.{k}": v for k, v in state.items()},
            "best_acc1": torch.tensor(61.5),
            "optimizer": {"state": buffers, "param_groups": [{"lr": 1e-3, "momentum": 0.9, "params": [0]}]},
        }
    )


def test_of_an_amalgamation_the_student_alone_is_loaded(
    small: SentimentStudent, classifier: State, amalgamated: State
) -> None:
    picked = keys_from_student(read_tensors(around(amalgamated), "file"))
    assert {k for k in picked if k.startswith("head.")} == set(HEAD)
    network = SentimentStudent("resnet18").eval()
    load_weights(network, picked, "file", ("head.",))
    head = LinearHead(512, 8)
    load_weights(head, {key.replace("head", "fc"): picked[key] for key in HEAD}, "file")
    image = images()
    with torch.inference_mode():
        logits = head(network(image))
        maps = small.stage4(small.stage3(small.stage2(small.stage1(image))))
        pooled = functional.adaptive_avg_pool2d(maps, 1).flatten(1)
        wanted = functional.linear(pooled, classifier["head.weight"], classifier["head.bias"])
    torch.testing.assert_close(logits, wanted, rtol=1e-5, atol=1e-5)


def test_of_a_pre_training_file_the_stages_alone_are_loaded(small: SentimentStudent) -> None:
    tasks = {
        "color_catUp.up1.conv1x1.weight": torch.zeros(64, 64, 1, 1),
        "scene_head.cls.weight": torch.zeros(365, 512),
        "anp_head.cls.bias": torch.zeros(1513),
        "caption_head.decoder.word_embedding.weight": torch.zeros(3, 128),
    }
    picked = keys_from_student(read_tensors(around(small.state_dict() | tasks), "file"))
    assert picked.keys() == small.state_dict().keys()
    network = SentimentStudent("resnet18")
    load_weights(network, picked, "file")
    assert all(torch.equal(v, small.state_dict()[k]) for k, v in network.state_dict().items())


@pytest.mark.parametrize("counters", [True, False], ids=["with-counters", "without"])
def test_a_student_by_itself_is_loaded_with_its_classifier(
    small: SentimentStudent, classifier: State, counters: bool
) -> None:
    state = {k: v for k, v in small.state_dict().items() if counters or not k.endswith("num_batches_tracked")}
    picked = keys_from_student(state | classifier)
    assert picked.keys() == state.keys() | set(HEAD)
    network = SentimentStudent("resnet18")
    load_weights(network, picked, "file", ("head.",))
    with torch.inference_mode():
        assert torch.equal(network.eval()(images()), small(images()))


@pytest.mark.parametrize(
    "state",
    [
        {"conv1.weight": 1, "layer1.0.conv1.weight": 1, "fc.weight": 1},
        {"t_low.stage1.0.weight": 1, "t_high.stage1.0.weight": 1, "t_high.head.weight": 1},
        {"stu.head.weight": 1, "stu.head.bias": 1},
        {"head.weight": 1, "head.bias": 1},
    ],
    ids=["imagenet", "teachers-alone", "classifier-of-a-student", "classifier-alone"],
)
def test_a_file_without_a_students_stages_is_refused(state: dict[str, int]) -> None:
    first = next(iter(state))
    says = (
        f"no stage of a student among {len(state)} keys, of which the first is '{first}'; expected stu.stage1"
    )
    with pytest.raises(CheckpointError, match=says):
        keys_from_student({key: torch.zeros(1) for key in state})


def test_two_names_of_one_students_tensor_are_refused(amalgamated: State) -> None:
    twice = amalgamated | {"stage1.0.weight": torch.zeros(64, 3, 7, 7)}
    with pytest.raises(
        CheckpointError,
        match=r"'stu\.stage1\.0\.weight' and 'stage1\.0\.weight' both mean 'stage1\.0\.weight'",
    ):
        keys_from_student(twice)


def test_a_key_beside_the_students_is_reported(amalgamated: State) -> None:
    state = amalgamated | {"adapter.weight": torch.zeros(1)}
    with pytest.raises(CheckpointError, match=r"^file does not fit the network: unexpected adapter\.weight$"):
        load_weights(on_meta("resnet18"), keys_from_student(state), "file", ("head.",))


@pytest.mark.parametrize(
    ("inside", "wanted", "says"),
    [
        (
            "resnet18",
            "resnet50",
            r"missing .*mis-shaped stage1\.4\.0\.conv1\.weight \(64, 64, 3, 3\) instead",
        ),
        ("resnet50", "resnet101", r"missing stage3\.10\.bn1\.bias, .* more$"),
        ("resnet101", "resnet50", r"unexpected stage3\.10\.bn1\.bias, .* more$"),
        ("vgg16", "vgg19", r"missing stage2\.23\.bias, .*; unexpected stage3\.24\.bias"),
        ("vgg19", "resnet18", r"missing .*unexpected .*mis-shaped stage1\.0\.weight \(64, 3, 3, 3\) instead"),
    ],
)
def test_another_backbones_student_is_refused(inside: str, wanted: Arch, says: str) -> None:
    state = {f"stu.{key}": tensor for key, tensor in zeros(inside).items()}
    with pytest.raises(CheckpointError, match=f"^file does not fit the network: {says}"):
        load_weights(on_meta(wanted), keys_from_student(state), "file", ("head.",))


@pytest.mark.parametrize("arch", ["vgg16", "resnet18"])
def test_an_untrained_network_lets_a_signal_through(arch: Arch) -> None:
    with torch.random.fork_rng(), torch.inference_mode():
        torch.manual_seed(3)
        features = SentimentStudent(arch).eval()(images(height=96))  # not square
    assert 0.01 < float(features.std()) < 100
    assert float((features[0] - features[1]).abs().max()) > 0.01


@pytest.mark.parametrize("arch", ["vgg16", "resnet18"])
def test_the_exported_graph_gives_the_same_features_at_other_batches(arch: Arch) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="the graph is run with it")
    pytest.importorskip("onnxscript", reason="torch exports with it")
    network = draw(SentimentStudent(arch))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own
        program = torch.onnx.export(
            network,
            (images(),),
            dynamo=True,
            opset_version=22,
            dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=4096)},),
            verbose=False,
        )
    operators = {node.op_type for node in program.model_proto.graph.node}
    assert operators <= {"Conv", "BatchNormalization", "Relu", "MaxPool", "Add", "ReduceMean"}
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
    for count in (1, 3):
        batch = images(count, seed=count)
        with torch.inference_mode():
            wanted = network(batch).numpy()
        [found] = session.run(None, {session.get_inputs()[0].name: batch.numpy()})
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("arch", ARCHS)
def test_a_recipe_puts_a_linear_head_over_the_student(arch: Arch) -> None:
    text = (files("vsa_rt.recipes") / f"cvpr2023-{arch}.toml").read_bytes()
    recipe = msgspec.toml.decode(text, type=Recipe)
    [backbone] = recipe.backbones
    assert (recipe.name, backbone.architecture) == (f"cvpr2023-{arch}", "sentiment-student")
    assert backbone.options == {"arch": arch}
    assert backbone.checkpoint.format == "cvpr2023"
    assert (recipe.head.kind, recipe.head.features) == ("linear", [backbone.name])
    assert recipe.task is Task.SINGLE_LABEL
    # The emotions of FI (You et al. 2016) in alphabetical order.
    emotions = ["amusement", "anger", "awe", "contentment", "disgust", "excitement", "fear", "sadness"]
    assert recipe.labels == emotions == sorted(emotions)
