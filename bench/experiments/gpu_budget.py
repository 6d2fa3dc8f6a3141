"""The budget of every shipped recipe on GPUs, on paper: writes docs/gpu_budget.md from the graphs themselves.

Usage: ``python -m vsa_rt.bench.experiments.gpu_budget [--recipe NAME]... [--out FILE]``

Each recipe is exported with seeded weights, in memory and one after the other: weights change no figure. The largest,
smap2021-moe, takes 7 GB and a minute. No GPU is needed and none is looked for: every figure follows from a graph, a
datasheet, or a publication that is named.
"""

from __future__ import annotations

import argparse
import gc
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import msgspec

from vsa_rt.bench.cost import Graph, read_graph
from vsa_rt.bench.experiments.gpu_anchors import ANCHORS, OFFLINE, Anchor
from vsa_rt.bench.experiments.gpu_page import BATCHES, Work, page
from vsa_rt.bench.gpu_devices import DEVICES, OLDER, PRECISIONS, Device
from vsa_rt.bench.gpu_floor import floor, kernels, moved
from vsa_rt.bench.records.limits import PaperFloor
from vsa_rt.recipe import Recipe
from vsa_rt.recipe_file import find_recipe, read_recipe, shipped_names

_SEED = 0
#: ImageNet's.
_CLASSES = 1000


def exported(recipe: Recipe, folder: Path) -> bytes:
    """A recipe's FP32 graph with seeded weights."""
    from vsa_rt.export.ensemble import load_ensemble
    from vsa_rt.export.graph import graph_from_ensemble

    ensemble = load_ensemble(recipe, folder, random_seed=_SEED).module
    graph = bytes(graph_from_ensemble(ensemble).SerializeToString())
    del ensemble
    # What torch's exporter leaves in cycles holds the weights once more.
    gc.collect()
    return graph


def work_of(name: str, model: bytes) -> Work:
    """Count a graph for every batch size.

    Args:
        name: The recipe's.
        model: Its FP32 graph.
    """
    graphs = {batch: read_graph(model, batch) for batch in BATCHES}
    one = graphs[1]
    made = kernels(one)
    taken, given = (sum(one.tensors[n] for n in names) for names in (one.inputs, one.outputs))
    return Work(
        name=name,
        macs=one.macs,
        # Float32 has four bytes.
        weights=sum(one.weights[w] for kernel in made for w in kernel.weights) // 4,
        kernels=len(made),
        copies=len(one.inputs) + len(one.outputs),
        taken=taken,
        given=given,
        unknown=len(one.unknown),
        moved={
            precision: [sum(moved(g, kernel, precision) for kernel in kernels(g)) for g in graphs.values()]
            for precision in PRECISIONS
        },
        floors={
            batch: [floor(graph, device, precision) for device in DEVICES for precision in PRECISIONS]
            for batch, graph in graphs.items()
        },
    )


def anchor_recipe(network: str) -> Recipe:
    """A network of timm with ImageNet's classes, as a recipe."""
    table = {
        "schema": 1,
        "name": network.replace("_", "-"),
        "task": "single-label",
        "labels": [str(number) for number in range(_CLASSES)],
        "backbones": [{"name": "net", "architecture": f"timm:{network}"}],
        "head": {"kind": "linear", "features": ["net"]},
    }
    return msgspec.convert(table, Recipe)


def _least_per_image(graphs: dict[int, Graph], device: Device, precision: str) -> tuple[int, PaperFloor]:
    """The batch size whose floor is the least per image."""
    floors = {batch: floor(graph, device, precision) for batch, graph in graphs.items()}
    batch = min(floors, key=lambda b: floors[b].floor_ms / b)
    return batch, floors[batch]


def anchor_rows(say: Callable[[str], None]) -> Iterator[tuple[Anchor, PaperFloor]]:
    """Every published figure with its floor; an offline one as a call of the batch size that suits it best."""
    devices = {device.name: device for device in (*DEVICES, *OLDER)}
    graphs: dict[str, dict[int, Graph]] = {}
    for network in dict.fromkeys(anchor.network for anchor in ANCHORS):
        say(network)
        model = exported(anchor_recipe(network), Path())
        asked = {anchor.batch for anchor in ANCHORS if anchor.network == network}
        wanted = sorted((asked | set(OFFLINE) if 0 in asked else asked) - {0})
        graphs[network] = {batch: read_graph(model, batch) for batch in wanted}
    for anchor in ANCHORS:
        device, found = devices[anchor.device], graphs[anchor.network]
        if anchor.batch:
            yield anchor, floor(found[anchor.batch], device, anchor.precision)
        else:
            offline = {batch: found[batch] for batch in OFFLINE}
            batch, least = _least_per_image(offline, device, anchor.precision)
            yield replace(anchor, batch=batch, ms=batch * anchor.ms), least


def main() -> None:
    """Count and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipe", action="append", help="only this one; repeats")
    parser.add_argument("--out", type=Path, default=Path("docs/gpu_budget.md"))
    chosen = parser.parse_args()

    def say(step: str) -> None:
        print(step, file=sys.stderr, flush=True)

    works = []
    for name in chosen.recipe or shipped_names():
        say(name)
        path = find_recipe(name)
        works.append(work_of(name, exported(read_recipe(path), path.parent)))
    found = list(anchor_rows(say))
    chosen.out.write_text(page(works, found), encoding="utf-8")
    for anchor, least in found:
        ratio = anchor.ms / least.floor_ms
        print(
            f"{anchor.device}, {anchor.network} {anchor.precision}, batch {anchor.batch}: {ratio:.1f}x its floor"
        )


if __name__ == "__main__":
    main()
