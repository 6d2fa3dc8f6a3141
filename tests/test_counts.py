"""Parameters and multiply-adds of every network equal the table that was derived from the papers and their code.

SMAP 2021 gives 9.2 M for EfficientNet-B2 with its classifier; the other figures were counted from the published code
(EfficientNet-PyTorch, tornadomeet/ResNet, pytorch-fid, youtube-8m, dual encoding, ObjectGraphs, BVLC/caffe).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

reason = "networks are torch modules"
torch = pytest.importorskip("torch", reason=reason)
pytest.importorskip("timm", reason="EfficientNet-B2 is timm's")
pytest.importorskip("torchvision", reason="Inception is built on torchvision's blocks")
from torch.utils.flop_counter import FlopCounterMode

from vsa_rt.export.head import LinearHead, MoeHead, NNHead
from vsa_rt.export.networks.caffenet import CaffeNet
from vsa_rt.export.networks.dual_encoding import DualEncoding
from vsa_rt.export.networks.inception2015 import Inception2015
from vsa_rt.export.networks.object_graph import ObjectGraph
from vsa_rt.export.networks.resnet152v2 import ResNet152V2
from vsa_rt.export.networks.youtube8m import ShallowCnn, YouTube8MPca

Inputs = list[tuple[int, ...]]


def efficientnet_b2() -> Any:
    import timm

    return timm.create_model("tf_efficientnet_b2", pretrained=False, num_classes=0)


def ablation(top: Any, classes: int = 0) -> Any:
    """CaffeNet to a layer, and a dense layer above it where one was added."""
    network = CaffeNet(top)
    return torch.nn.Sequential(network, LinearHead(network.width, classes)) if classes else network


#: Network, shapes that it takes, millions of parameters, billions of multiply-adds for one image; None where the
#: table has none.
TABLE: dict[str, tuple[Callable[[], Any], Inputs, float, float | None]] = {
    "E at 224": (efficientnet_b2, [(1, 3, 224, 224)], 7.70, 0.66),
    "E at 256": (efficientnet_b2, [(1, 3, 256, 256)], 7.70, 0.86),
    "E at 260": (efficientnet_b2, [(1, 3, 260, 260)], 7.70, 0.99),
    "E at 288": (efficientnet_b2, [(1, 3, 288, 288)], 7.70, 1.09),
    "R": (ResNet152V2, [(1, 3, 256, 256)], 58.14, 11.51),
    "R, ten crops": (lambda: ResNet152V2("ten"), [(1, 3, 256, 256)], 58.14, 115.12),
    "Y, Inception": (Inception2015, [(1, 3, 299, 299)], 21.79, 5.71),
    "Y, PCA": (YouTube8MPca, [(1, 2048)], 2.10, None),
    "Y, shallow CNN": (ShallowCnn, [(1, 1024)], 126.55, 0.13),
    "Y, shallow CNN over 2048": (lambda: ShallowCnn(2048), [(1, 2048)], 253.10, None),
    "Y, shallow CNN with sound": (lambda: ShallowCnn(1152, audio=128), [(1, 1024)], 142.37, None),
    "S": (lambda: DualEncoding(attention="none"), [(1, 2048)], 46.16, 0.040),
    "S, with attention": (DualEncoding, [(1, 2048)], 50.36, 0.040),
    "G": (ObjectGraph, [(1, 50, 2048), (1, 50)], 16.79, 0.854),
    "ASM, fine-tuned": (lambda: ablation("fc7", 2), [(1, 3, 256, 256)], 56.876418, 0.720),
    "ASM, fc7-4096": (lambda: ablation("fc7"), [(1, 3, 256, 256)], 56.868224, 0.720),
    "ASM, fc6-4096": (lambda: ablation("fc6"), [(1, 3, 256, 256)], 40.086912, 0.703),
    "ASM, fc7-2": (lambda: ablation("fc6", 2), [(1, 3, 256, 256)], 40.095106, 0.703),
    "ASM, fc6-2": (lambda: ablation("pool5", 2), [(1, 3, 256, 256)], 2.352514, 0.666),
    "ASM, fc8-1000": (lambda: ablation("fc8"), [(1, 3, 256, 256)], 60.965224, 0.724),
    "ASM, fc9-2": (lambda: ablation("fc8", 2), [(1, 3, 256, 256)], 60.967226, 0.724),
    "head, mixture": (lambda: MoeHead(11414, 2, 200, 2, False, 0.4), [(1, 11414)], 2.285, 0.002),
    "head, two layers": (lambda: NNHead(11414, 2, [200], 0.4), [(1, 11414)], 2.283402, None),
    "head, subtask 2": (lambda: NNHead(11414, 7, [1000, 200], 0.4), [(1, 11414)], 11.616607, None),
    "head, subtask 3": (lambda: NNHead(11414, 10, [1000, 200], 0.4), [(1, 11414)], 11.617210, None),
}


def digits(value: float) -> int:
    """Decimals that a figure of the table is given with."""
    return len(repr(value).partition(".")[2])


@pytest.mark.parametrize("name", TABLE)
def test_parameters_and_multiply_adds(name: str) -> None:
    make, shapes, millions, billions = TABLE[name]
    with torch.device("meta"):
        network = make().eval()
        inputs = [torch.empty(shape) for shape in shapes]
        count = sum(p.numel() for p in network.parameters())
        with FlopCounterMode(display=False) as counter, torch.inference_mode():
            network(*inputs)
    assert round(count / 1e6, digits(millions)) == millions
    if billions is not None:
        # A multiply-add is two operations. The table's last digit may be rounded either way.
        macs = counter.get_total_flops() / 2e9
        assert abs(macs - billions) <= 0.6 * 10 ** -digits(billions)
