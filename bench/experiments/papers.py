"""Every recipe of the papers from end to end with seeded weights: fit, build, check; what each tap differs by.

Usage: ``python -m vsa_rt.bench.experiments.papers LABELLED_FOLDER --work DIR [--photographs N] [--recipe NAME]... [--set …]…``

Some photographs of the folder get ready tensors beside them (stand-ins) and labels: their own where the recipe has
them, else by brightness, so that every label is one that a head can learn. The head is then fitted over the seeded
backbones, so that decisions count, and the bundle is compared with PyTorch over all of the photographs.
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vsa_rt.bench import clock
from vsa_rt.contracts import Task
from vsa_rt.dataset import read_dataset
from vsa_rt.recipe import Recipe, needed_backbones, tensor_input
from vsa_rt.recipe_file import find_recipe, read_recipe, shipped_names, with_options

SEED = 0


def paper_recipes() -> list[str]:
    """The shipped recipes whose weights are not shipped."""
    return [
        n
        for n in shipped_names()
        if not all(b.checkpoint.path for b in read_recipe(find_recipe(n)).backbones)
    ]


def label_cells(recipe: Recipe, paths: Sequence[Path], own: Sequence[str | None]) -> list[str]:
    """One cell of ``labels.csv`` per photograph."""
    if set(own) == set(recipe.labels):
        return [str(label) for label in own]
    brightness = []
    for path in paths:
        with Image.open(path) as picture:
            brightness.append(float(np.asarray(picture.convert("L").resize((32, 32))).mean()))
    rank = np.argsort(np.argsort(brightness))
    place = [int(r) * len(recipe.labels) // len(paths) for r in rank]
    if recipe.task is not Task.MULTI_LABEL:
        return [recipe.labels[p] for p in place]
    # Two labels each: neighbours in brightness share one.
    return [f"{recipe.labels[p]}|{recipe.labels[(p + 1) % len(recipe.labels)]}" for p in place]


def make_data(recipe: Recipe, source: Path, count: int, folder: Path) -> Path:
    """A labelled folder of some photographs with ready tensors beside them."""
    from vsa_rt.export.stand_ins import stand_in

    found = read_dataset(source).photographs
    chosen = found[:: max(1, len(found) // count)][:count]
    images = folder / "images"
    images.mkdir(parents=True)
    for photograph in chosen:
        path = images / photograph.path.name
        shutil.copyfile(photograph.path, path)
        for given in filter(None, map(tensor_input, needed_backbones(recipe))):
            with Image.open(path) as picture:
                rows = stand_in(picture.convert("RGB"), *given)
            np.save(path.with_name(f"{path.name}.{given[0]}.npy"), rows)
    paths = [images / p.path.name for p in chosen]
    with (folder / "labels.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["file", "label"])
        for path, cell in zip(paths, label_cells(recipe, paths, [p.label for p in chosen]), strict=True):
            writer.writerow([path.name, cell])
    return folder


def vsa_rt(*words: object) -> tuple[Any, float]:
    """One command's JSON document, and its seconds."""
    command = [sys.executable, "-m", "vsa_rt", *map(str, words), "--json"]
    done: list[subprocess.CompletedProcess[str]] = []
    seconds = clock.single(
        lambda: done.append(subprocess.run(command, capture_output=True, encoding="utf-8", check=False))
    )
    result = done[0]
    if not result.stdout:
        raise SystemExit(f"{' '.join(command[2:])}: exit code {result.returncode}: {result.stderr.strip()}")
    return json.loads(result.stdout), seconds


def report(name: str, settings: Sequence[str], source: Path, count: int, work: Path) -> Iterator[str]:
    """Fit, build and check one recipe, a line per result."""
    shutil.rmtree(work, ignore_errors=True)
    recipe = with_options(read_recipe(find_recipe(name)), dict(s.split("=", 1) for s in settings))
    data = make_data(recipe, source, count, work / "data")
    options = [word for s in settings for word in ("--set", s)] + ["--random-weights", SEED]
    head, bundle = work / "head.safetensors", work / "bundle"
    folds, given = ["--folds", 2], []
    if recipe.head.kind != "units":  # these have nothing to train
        _, seconds = vsa_rt(
            "fit", name, "--data", data, "-o", head, "--cache", work / "cache", *folds, *options
        )
        yield f"{name} {' '.join(settings)}: fit {seconds:.0f} s"
        given = ["--weights", f"head={head}"]
    built, seconds = vsa_rt("build", name, "-o", bundle, "--data", data, *given, *options)
    size = sum(f["nbytes"] for f in built["manifest"]["files"].values()) / 1e9
    yield f"  build {seconds:.0f} s, {size:.2f} GB"
    for left in built["manifest"]["rejected"]:
        yield f"  left out: {left['target']} {left['precision']}: {left['reason']}"
    checked, seconds = vsa_rt("check", bundle, "--data", data)
    yield f"  check {seconds:.0f} s"
    for stage in checked["stages"]:
        taps = ", ".join(f"{t['tap']} {t['relative']:.1e}" for t in stage["taps"] if t["kind"] != "input")
        flips = len(stage["flips"])
        ties = sum(f["tie"] for f in stage["flips"])
        yield (
            f"  {stage['stage']} against {stage['reference']}: {'holds' if stage['passed'] else 'FAILS'} on "
            f"{stage['images']} images, {flips - ties} flips, {ties} ties; relative: {taps}"
        )
        for reason in stage["reasons"]:
            yield f"    {reason}"


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--work", type=Path, required=True, help="folder for bundles; overwritten")
    parser.add_argument("--photographs", type=int, default=48)
    parser.add_argument("--recipe", action="append", help="by default every recipe of the papers")
    parser.add_argument("--set", action="append", default=[], metavar="BACKBONE.OPTION=VALUE")
    chosen = parser.parse_args()
    for name in chosen.recipe or paper_recipes():
        for line in report(name, chosen.set, chosen.data, chosen.photographs, chosen.work / name):
            print(line, flush=True)
        shutil.rmtree(chosen.work / name / "bundle", ignore_errors=True)


if __name__ == "__main__":
    main()
