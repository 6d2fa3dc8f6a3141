"""The signature feature: closed form, clips, checkpoint keys and export, against the published formulas."""

from __future__ import annotations

import argparse
import io
from collections import OrderedDict
from typing import Any

import numpy as np
import pytest

from vsa_rt.errors import CheckpointError, UsageError

reason = "the network is a torch module, exported to ONNX"
torch = pytest.importorskip("torch", reason=reason)
onnx = pytest.importorskip("onnx", reason=reason)
ort = pytest.importorskip("onnxruntime", reason=reason)

from torch.nn import functional
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils.flop_counter import FlopCounterMode

from vsa_rt.export.checkpoint import load_weights
from vsa_rt.export.networks.dual_encoding import (
    Attention,
    DualEncoding,
    DualEncodingFrames,
    keys_from_dual_encoding,
    tensors_of_dual_encoding,
)
from vsa_rt.export.torch_pickle import read_torch

Tensor = Any
State = dict[str, Any]
ATTENTIONS: tuple[Attention, ...] = ("one", "raw", "none")
#: Small enough for a test; every size differs from every other.
SMALL: dict[str, Any] = {"features": 11, "hidden": 6, "kernels": (2, 3, 4, 5), "filters": 5, "mapping": 13}


def visual_shapes(attention: Attention) -> dict[str, tuple[int, ...]]:
    """The published visual branch at SMAP's sizes: names and shapes of bmezaris/AVS_dual_encoding_attention_network."""
    shapes: dict[str, tuple[int, ...]] = {}
    for direction in ("", "_reverse"):
        shapes |= {
            f"rnn.weight_ih_l0{direction}": (3072, 2048),
            f"rnn.weight_hh_l0{direction}": (3072, 1024),
            f"rnn.bias_ih_l0{direction}": (3072,),
            f"rnn.bias_hh_l0{direction}": (3072,),
        }
    if attention != "none":
        shapes |= {"atten.fc1.weight": (2048, 2048), "atten.fc1.bias": (2048,)}
        shapes |= {"atten.fc2.weight": (1, 2048), "atten.fc2.bias": (1,)}
    for index, k in enumerate((2, 3, 4, 5)):
        shapes |= {f"convs1.{index}.weight": (512, 1, k, 2048), f"convs1.{index}.bias": (512,)}
    shapes |= {"visual_mapping.fc1.weight": (2048, 6144), "visual_mapping.fc1.bias": (2048,)}
    for name in ("weight", "bias", "running_mean", "running_var"):
        shapes[f"visual_mapping.bn_1.{name}"] = (2048,)
    return shapes | {"visual_mapping.bn_1.num_batches_tracked": ()}


def seeded(network: Any, seed: int = 0) -> Any:
    """Every parameter and statistic away from its initial value; ready for inference."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in network.state_dict().items():
        if tensor.is_floating_point():
            values = torch.randn(tensor.shape, generator=generator, dtype=torch.float64) * 0.4
            tensor.copy_(values.abs() + 0.5 if name.endswith("running_var") else values)
    return network.eval().requires_grad_(False)


def clips(lengths: list[int], total: int, width: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    frames = torch.rand(len(lengths), total, width, generator=generator, dtype=torch.float64) * 3
    for clip, length in enumerate(lengths):
        frames[clip, length:] = 0
    return frames


def reference(network: Any, frames: Tensor, lengths: list[int]) -> Tensor:
    """The published formulas with torch's own packed GRU and two-dimensional convolutions, clip by clip."""
    state = network.state_dict()
    normal = torch.stack([torch.stack([f / f.norm() if f.any() else f for f in clip]) for clip in frames])
    normal = normal if network.input_norm else frames
    gru = torch.nn.GRU(network.features, network.hidden, batch_first=True, bidirectional=True)
    gru = gru.to(frames.dtype).requires_grad_(False)
    gru.load_state_dict({k.removeprefix("rnn."): v for k, v in state.items() if k.startswith("rnn.")})
    packed = pack_padded_sequence(normal, torch.tensor(lengths), batch_first=True, enforce_sorted=False)
    padded, _ = pad_packed_sequence(gru(packed)[0], batch_first=True)
    found = []
    for clip, length in enumerate(lengths):
        states = padded[clip, :length]
        if network.attention != "none":
            weight = torch.tanh(states @ state["atten.fc1.weight"].T + state["atten.fc1.bias"])
            weight = weight @ state["atten.fc2.weight"].T + state["atten.fc2.bias"]
            states = states * (torch.softmax(weight, -1) if network.attention == "one" else weight)
        levels = [states.mean(0)]
        for index, k in enumerate(network.kernels):
            image = functional.conv2d(
                states[None, None],
                state[f"convs1.{index}.weight"],
                state[f"convs1.{index}.bias"],
                padding=(k - 1, 0),
            )
            assert image.shape[2:] == (length + k - 1, 1)
            levels.append(functional.relu(image)[0, :, :, 0].amax(1))
        joined = torch.cat([*levels, normal[clip, :length].mean(0)])
        mapped = state["visual_mapping.fc1.weight"] @ joined + state["visual_mapping.fc1.bias"]
        norm = {
            k: state[f"visual_mapping.bn_1.{k}"] for k in ("running_mean", "running_var", "weight", "bias")
        }
        mapped = (mapped - norm["running_mean"]) / torch.sqrt(norm["running_var"] + 1e-5)
        mapped = mapped * norm["weight"] + norm["bias"]
        found.append(mapped / mapped.norm() if network.normalised else mapped)
    return torch.stack(found)


@pytest.mark.parametrize("kind", [DualEncoding, DualEncodingFrames])
@pytest.mark.parametrize(("attention", "millions"), [("one", 50.36), ("raw", 50.36), ("none", 46.16)])
def test_parameters_are_the_published_ones(kind: Any, attention: Attention, millions: float) -> None:
    with torch.device("meta"):
        network = kind(attention=attention)
    assert {k: tuple(v.shape) for k, v in network.state_dict().items()} == visual_shapes(attention)
    # 46.16 M of the encoder and 4.20 M of its attention.
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(millions, abs=0.005)
    assert network.width == 2048


@pytest.mark.parametrize(("attention", "millions"), [("one", 39.8), ("raw", 44.0), ("none", 39.8)])
def test_one_frame_costs_forty_million_multiply_adds(attention: Attention, millions: float) -> None:
    with torch.device("meta"):
        network = DualEncoding(attention=attention).eval()
        frame = torch.empty(1, 2048)
    with FlopCounterMode(display=False) as counter:
        assert network(frame).shape == (1, 2048)
    # 2048 x 6144 gates, 2048 x 7168 taps, 6144 x 2048 mapping; a raw gate adds 2048 x 2048 + 2048.
    assert counter.get_total_flops() / 2e6 == pytest.approx(millions, abs=0.05)


@pytest.mark.parametrize("options", [{}, {"normalised": False}, {"input_norm": False}], ids=str)
@pytest.mark.parametrize("attention", ATTENTIONS)
def test_the_closed_form_is_the_gru_of_one_frame(attention: Attention, options: dict[str, Any]) -> None:
    single = seeded(DualEncoding(**SMALL, attention=attention, **options))
    frames = seeded(DualEncodingFrames(**SMALL, attention=attention, **options))
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        single, frames = single.to(dtype), frames.to(dtype)
        clip = clips([1] * 7, 1, 11).to(dtype)
        wanted = reference(single, clip, [1] * 7)
        assert wanted.std() > 0.1
        torch.testing.assert_close(single(clip[:, 0]), wanted, rtol=0, atol=tolerance)
        torch.testing.assert_close(frames(clip), wanted, rtol=0, atol=tolerance)


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_clips_of_all_lengths_in_one_batch(attention: Attention) -> None:
    network = seeded(DualEncodingFrames(**SMALL, attention=attention)).double()
    lengths = [3, 1, 7, 2, 6, 5, 4, 7]
    batch = clips(lengths, 7, 11)
    wanted = reference(network, batch, lengths)
    torch.testing.assert_close(network(batch), wanted, rtol=0, atol=1e-12)
    torch.testing.assert_close(network(batch, torch.tensor(lengths)), wanted, rtol=0, atol=1e-12)
    # More padding, or none, changes nothing.
    longer = torch.cat([batch, torch.zeros(8, 4, 11, dtype=torch.float64)], 1)
    torch.testing.assert_close(network(longer), wanted, rtol=0, atol=1e-12)
    torch.testing.assert_close(network(batch[:1, :3]), wanted[:1], rtol=0, atol=1e-12)


def test_only_rows_after_the_last_frame_are_padding() -> None:
    network = seeded(DualEncodingFrames(**SMALL)).double()
    batch = clips([5, 5], 6, 11)
    batch[0, 2] = 0  # a black frame inside a clip
    torch.testing.assert_close(network(batch), reference(network, batch, [5, 5]), rtol=0, atol=1e-12)
    wanted = reference(network, batch, [3, 4])
    batch[0, 3:], batch[1, 4:] = float("nan"), 1e6
    torch.testing.assert_close(network(batch, torch.tensor([3, 4])), wanted, rtol=0, atol=1e-12)


def test_the_published_attention_is_none_and_the_raw_one_is_not() -> None:
    frame = clips([1] * 3, 1, 11)[:, 0]
    networks = {a: seeded(DualEncoding(**SMALL, attention=a)).double() for a in ATTENTIONS}
    state = networks["raw"].state_dict()
    networks["one"].load_state_dict(state)
    networks["none"].load_state_dict({k: v for k, v in state.items() if not k.startswith("atten.")})
    found = {a: n(frame) for a, n in networks.items()}
    assert torch.equal(found["one"], found["none"])
    assert (found["raw"] - found["one"]).abs().max() > 0.01


def test_both_norms_are_the_readings_they_say() -> None:
    frame = clips([1] * 3, 1, 11)[:, 0]
    network = seeded(DualEncoding(**SMALL)).double()
    torch.testing.assert_close(network(frame).norm(dim=1), torch.ones(3, dtype=torch.float64))
    torch.testing.assert_close(network(frame), network(frame * 1000))
    before = seeded(DualEncoding(**SMALL, normalised=False)).double()(frame)
    assert (before.norm(dim=1) - 1).abs().min() > 0.1
    torch.testing.assert_close(before / before.norm(dim=1, keepdim=True), network(frame))
    plain = seeded(DualEncoding(**SMALL, input_norm=False)).double()
    assert (plain(frame) - network(frame)).abs().max() > 0.01
    torch.testing.assert_close(plain(frame / frame.norm(dim=1, keepdim=True)), network(frame))


def test_vectors_of_zeros_stay_numbers() -> None:
    single, frames = seeded(DualEncoding(**SMALL)), seeded(DualEncodingFrames(**SMALL))
    black = torch.zeros(2, 4, 11)
    found = single(black[:, 0])
    assert torch.isfinite(found).all()
    torch.testing.assert_close(frames(black), found)  # a clip of nothing is one frame of zeros
    for name, tensor in single.state_dict().items():
        if name.startswith("visual_mapping.") and tensor.is_floating_point():
            tensor.zero_()
    assert torch.equal(single(black[:, 0]), torch.zeros(2, 13))


def test_an_unknown_attention_is_refused() -> None:
    wrong: Any = "softmax"
    with pytest.raises(UsageError, match=r"'softmax'.*one, raw, none"):
        DualEncoding(**SMALL, attention=wrong)


# Checkpoints


def test_a_published_file_serves_both_forms() -> None:
    trained = seeded(DualEncoding(**SMALL, attention="raw"), seed=5)
    visual = OrderedDict((f"module.{k}", v) for k, v in trained.state_dict().items())
    visual.pop("module.visual_mapping.bn_1.num_batches_tracked")  # PyTorch 0.3 had none
    value = {
        "epoch": 3,
        "model": [visual, OrderedDict({"embed.weight": torch.ones(2)})],
        "best_rsum": np.float64(1.5),
        "opt": argparse.Namespace(visual_norm=True),
        "Eiters": 10,
    }
    file = io.BytesIO()
    torch.save(value, file, _use_new_zipfile_serialization=False)
    state = keys_from_dual_encoding(
        tensors_of_dual_encoding(read_torch(file.getvalue(), "best.pth.tar"), "best.pth.tar")
    )
    single, frames = DualEncoding(**SMALL, attention="raw"), DualEncodingFrames(**SMALL, attention="raw")
    for network in (single, frames):
        load_weights(network, state, "best.pth.tar")
        network.eval()
    clip = clips([1] * 3, 1, 11).float()
    with torch.inference_mode():
        assert torch.equal(single(clip[:, 0]), trained(clip[:, 0]))
        torch.testing.assert_close(frames(clip), single(clip[:, 0]))
    assert tensors_of_dual_encoding(dict(visual), "bare").keys() == visual.keys()


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (3, "file: is int, expected a dictionary"),
        ({}, "file: is an empty dictionary"),
        ({"a": torch.ones(1), "b": 3}, "file: entry 'b' is int"),
        ({4: torch.ones(1)}, "file: entry 4 is Tensor, expected names"),
        ({"model": {"a": torch.ones(1)}}, "key `model`: is dict, expected the published list of two"),
        ({"model": [{"a": torch.ones(1)}]}, "key `model`: is list of 1"),
        ({"model": [3, {}]}, "key `model`, entry 0: is int"),
        ({"model": [{"a": "b"}, {}]}, "key `model`, entry 0: entry 'a' is str"),
    ],
)
def test_another_structure_is_one_error(value: object, says: str) -> None:
    with pytest.raises(CheckpointError, match=says):
        tensors_of_dual_encoding(value, "file")


def _without(key: str) -> Any:
    return lambda state: {k: v for k, v in state.items() if k != key}


@pytest.mark.parametrize(
    ("attention", "change", "says"),
    [
        ("one", _without("atten.fc1.weight"), r"missing atten\.fc1\.weight"),
        ("one", _without("rnn.weight_hh_l0"), r"missing rnn\.weight_hh_l0"),
        ("none", lambda s: s, r"unexpected atten\.fc1\.bias, atten\.fc1\.weight, atten\.fc2"),
        ("one", lambda s: s | {"text": torch.ones(1)}, "unexpected text"),
        # Dead in the closed form, yet a foreign shape says that the checkpoint is another network's.
        (
            "one",
            lambda s: s | {"rnn.weight_hh_l0": torch.ones(9, 9)},
            r"mis-shaped rnn\.weight_hh_l0 \(9, 9\)",
        ),
        (
            "one",
            lambda s: s | {"convs1.3.weight": torch.ones(5, 1, 6, 12)},
            r"convs1\.3\.weight \(5, 1, 6, 12\) instead of \(5, 1, 5, 12\)",
        ),
        (
            "one",
            lambda s: s | {"atten.fc2.bias": torch.tensor([float("nan")])},
            r"not finite atten\.fc2\.bias",
        ),
    ],
)
def test_a_key_that_does_not_fit_is_named(attention: Attention, change: Any, says: str) -> None:
    state = seeded(DualEncoding(**SMALL)).state_dict()
    with pytest.raises(CheckpointError, match=says):
        load_weights(
            DualEncoding(**SMALL, attention=attention), keys_from_dual_encoding(change(state)), "file"
        )


# Export


def exported(network: Any, example: Tensor) -> Any:
    program = torch.onnx.export(
        network,
        (example,),
        dynamo=True,
        opset_version=22,
        dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=4096)},),
        optimize=True,
        verbose=False,
    )
    assert program is not None
    onnx.checker.check_model(program.model_proto, full_check=True)
    return program.model_proto


def run(model: Any, values: Tensor) -> Tensor:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: values.numpy()})[0])


@pytest.mark.filterwarnings("ignore")
def test_the_exported_closed_form_agrees_at_any_batch() -> None:
    network = seeded(DualEncoding(**SMALL, attention="raw"))
    model = exported(network, torch.ones(2, 11))
    operators = {node.op_type for node in model.graph.node}
    assert not operators & {"GRU", "Loop", "Scan", "If", "NonZero", "Conv"}
    assert not any("weight_hh" in tensor.name for tensor in model.graph.initializer)
    for batch in (1, 3):
        values = clips([1] * batch, 1, 11, seed=batch)[:, 0].float()
        torch.testing.assert_close(run(model, values), network(values), rtol=0, atol=1e-6)


@pytest.mark.filterwarnings("ignore")
def test_the_exported_clips_agree_at_any_batch_and_length() -> None:
    network = seeded(DualEncodingFrames(**SMALL | {"kernels": (2, 5)}, attention="raw"))
    model = exported(network, torch.ones(2, 4, 11))
    operators = [node.op_type for node in model.graph.node]
    assert operators.count("GRU") == 2
    assert not set(operators) & {"Loop", "Scan", "If", "NonZero"}
    for lengths in ([3], [1, 4, 2]):
        values = clips(lengths, 4, 11).float()
        torch.testing.assert_close(run(model, values), network(values), rtol=0, atol=1e-6)
        torch.testing.assert_close(network(values), reference(network, values, lengths), rtol=0, atol=1e-5)
