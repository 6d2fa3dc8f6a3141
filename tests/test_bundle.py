"""A bundle appears whole or not at all, is read without trust, and moves between machines."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

import vsa_rt
from vsa_rt.bundle import MANIFEST, Bundle, hash_file, new_folder, seal_folder
from vsa_rt.contracts import ResizeSpec, Sentiment
from vsa_rt.errors import BundleError, GateError
from vsa_rt.manifest import (
    CalibrationRecord,
    FileRecord,
    InputRecord,
    TapRecord,
    manifest_from_json,
    manifest_to_json,
    seal,
)
from vsa_rt.recipe import Backbone, Head

Cli = Callable[..., "subprocess.CompletedProcess[str]"]
Reseal = Callable[..., None]


def files_of(root: Path) -> list[str]:
    return sorted(p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file())


def edit(root: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the manifest's JSON and leave its digest."""
    raw = json.loads((root / MANIFEST).read_bytes())
    change(raw)
    (root / MANIFEST).write_text(json.dumps(raw), encoding="utf-8")


def refused(root: Path, coffee: Path, here: Cli) -> str:
    """`run` and `inspect` both say no with exit code 3 and one line; returns what `run` says."""
    done = here("run", root, coffee)
    assert (done.returncode, done.stdout) == (3, ""), done
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("vsa-rt: ")
    seen = here("inspect", root)
    assert (seen.returncode, seen.stdout) == (3, ""), seen
    return done.stderr


def test_what_was_built_is_read_back(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    bundle.verify()
    manifest = bundle.manifest
    assert manifest_from_json(manifest_to_json(manifest), "again") == manifest
    assert manifest.labels == ["dark", "bright"]
    assert [t.name for t in manifest.taps] == ["small", "other", "features", "logits", "scores"]
    assert manifest.vsa_rt == vsa_rt.__version__
    assert set(manifest.files) == set(files_of(tiny_bundle)) - {MANIFEST}
    for name, record in manifest.files.items():
        assert hash_file(tiny_bundle / name) == record
        assert len(bundle.read(name)) == record.nbytes


def test_engines_are_where_the_manifest_says_and_names_have_no_colon(tiny_bundle: Path) -> None:
    for engine in Bundle.open(tiny_bundle).manifest.engines:
        assert engine.folder == f"engines/{engine.target.replace(':', '-')}-{engine.precision}"
        assert all(name.startswith(f"{engine.folder}/") and ":" not in name for name in engine.files)
        assert engine.gate.passed
        assert set(engine.latency_ms) == {"1", "4"}


def test_graphs_and_engines_hold_no_path_of_the_machine_that_built_them(
    tiny_bundle: Path, tiny_recipe: Path
) -> None:
    for private in (str(tiny_recipe.parent).encode(), str(Path(__file__).parents[1]).encode()):
        for name in files_of(tiny_bundle):
            if name != MANIFEST:  # it says where the checkpoints lay
                assert private not in (tiny_bundle / name).read_bytes(), (private, name)


def test_every_damaged_file_is_refused(tiny_bundle: Path, bundle_copy: Path, coffee: Path, here: Cli) -> None:
    for name in files_of(tiny_bundle):
        whole = (tiny_bundle / name).read_bytes()
        path = bundle_copy / name
        flipped = bytearray(whole)
        flipped[len(whole) // 2] ^= 1
        # The manifest ends with a newline, which nobody misses.
        for data in (bytes(flipped), whole[:-2], whole + b"\0", b""):
            path.write_bytes(data)
            assert name in refused(bundle_copy, coffee, here)
        path.unlink()
        assert name in refused(bundle_copy, coffee, here)
        path.mkdir()
        assert name in refused(bundle_copy, coffee, here)
        path.rmdir()
        path.write_bytes(whole)
    assert here("run", bundle_copy, coffee).returncode == 0


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda raw: raw.update(schema=99), "schema 99"),
        (lambda raw: raw.pop("schema"), "schema None"),
        (lambda raw: raw.update(schema="1"), "schema '1'"),
        (lambda raw: raw.update(colour="red"), "colour"),
        (lambda raw: raw["engines"][0].update(colour="red"), "colour"),
        (lambda raw: raw["recipe"].update(colour="red"), "colour"),
        (lambda raw: raw.pop("golden"), "golden"),
        (lambda raw: raw.update(max_batch="4"), "max_batch"),
        (lambda raw: raw["labels"].reverse(), "digest"),
        (lambda raw: raw.update(digest=""), "digest"),
    ],
)
def test_a_foreign_manifest_is_refused(
    bundle_copy: Path, coffee: Path, here: Cli, change: Callable[[dict[str, Any]], None], says: str
) -> None:
    edit(bundle_copy, change)
    assert says in refused(bundle_copy, coffee, here)


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 200_000, b'{"schema": 1}'],
    ids=["empty", "cut", "list", "null", "bytes", "deep", "bare"],
)
def test_what_is_no_manifest_is_refused(bundle_copy: Path, coffee: Path, here: Cli, data: bytes) -> None:
    (bundle_copy / MANIFEST).write_bytes(data)
    refused(bundle_copy, coffee, here)


def test_an_enormous_manifest_is_refused_unread(bundle_copy: Path) -> None:
    with (bundle_copy / MANIFEST).open("r+b") as stream:
        stream.truncate(65 << 20)
    with pytest.raises(BundleError, match="not a manifest"):
        Bundle.open(bundle_copy)


def test_a_directory_that_is_no_bundle(tmp_path: Path, coffee: Path, here: Cli) -> None:
    for path in (tmp_path, tmp_path / "absent", coffee):
        assert "not a bundle" in refused(path, coffee, here)


@pytest.mark.parametrize(
    "name", ["../outside", "inner/../../outside", "/etc/hostname", "..\\outside", "a\0b", "", "."]
)
def test_a_name_that_leaves_the_bundle_is_refused(
    bundle_copy: Path, coffee: Path, here: Cli, reseal: Reseal, name: str
) -> None:
    (bundle_copy.parent / "outside").write_bytes(b"secret")
    files = dict(Bundle.open(bundle_copy).manifest.files)
    files[name] = FileRecord(nbytes=6, sha256="0" * 64)
    reseal(bundle_copy, files=files)
    refused(bundle_copy, coffee, here)


def test_a_link_that_leaves_the_bundle_is_refused(
    bundle_copy: Path, tmp_path: Path, coffee: Path, here: Cli
) -> None:
    moved = tmp_path / "graph.onnx"
    shutil.move(bundle_copy / "graph.onnx", moved)
    (bundle_copy / "graph.onnx").symlink_to(moved)
    assert "leaves the bundle" in refused(bundle_copy, coffee, here)
    (bundle_copy / "graph.onnx").unlink()
    (bundle_copy / "graph.onnx").symlink_to("graph.onnx")
    refused(bundle_copy, coffee, here)


def _with(field: str, **changes: object) -> Callable[[Bundle], dict[str, object]]:
    """The manifest's field with its first entry changed."""

    def make(bundle: Bundle) -> dict[str, object]:
        first, *rest = getattr(bundle.manifest, field)
        return {field: [msgspec.structs.replace(first, **changes), *rest]}

    return make


FORGERIES: dict[str, Callable[[Bundle], dict[str, object]]] = {
    "more labels than scores": lambda b: {"labels": ["one", "two", "three"]},
    "labels that are not the recipe's": lambda b: {"labels": ["day", "night"]},
    "no batch": lambda b: {"max_batch": 0},
    "a negative batch": lambda b: {"max_batch": -3},
    "an endless batch": lambda b: {"max_batch": 10**15},
    "no graph": lambda b: {"graphs": []},
    "no inputs": lambda b: {"inputs": []},
    "no taps": lambda b: {"taps": []},
    "golden tensors that are not there": lambda b: {"golden": "absent.npz"},
    "no files": lambda b: {"files": {}},
    "a negative shape": _with("inputs", shape=[-1, 160, 3]),
    "an endless shape": _with("inputs", shape=[10**9, 10**9, 3]),
    "a shape unlike its resize": _with("inputs", shape=[99, 99, 3]),
    "an input of objects": _with("inputs", dtype="object"),
    "an input of an unknown type": _with("inputs", dtype="nonsense"),
    "an input that the engine lacks": _with("inputs", name="elsewhere"),
    "a resize unlike its shape": _with(
        "inputs", resize=ResizeSpec(height=99, width=99, fit="warp", kernel="bilinear")
    ),
    "an endless tap": _with("taps", width=10**12),
    "a tap of another width": _with("taps", width=7),
    "a tap that the engine lacks": _with("taps", name="elsewhere"),
    "a target without a device": _with("engines", target="nonsense"),
    "an unknown precision": _with("engines", precision="fp3"),
    "an engine without files": _with("engines", files=[]),
    "an engine of a graph that is not there": _with("engines", graph="absent.onnx"),
    "an engine planned unlike its graph": _with("engines", plan={"small": "fp32", "other": "int8"}),
    "a graph of an unknown precision": _with("graphs", plan={"small": "fp3", "other": "fp32"}),
    "a calibration that is not there": lambda b: {
        "calibration": CalibrationRecord(
            path="absent.npz", method="entropy", images=16, skipped=0, warnings=[]
        )
    },
    "an engine of one file": _with("engines", files=["graph.onnx"]),
    "an engine whose files are not there": _with("engines", files=["absent/model.xml", "absent/model.bin"]),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_a_forged_manifest_that_contradicts_itself_is_refused(
    bundle_copy: Path, coffee: Path, here: Cli, reseal: Reseal, name: str
) -> None:
    """The digest is right. One line and exit code 3: never a traceback, a huge allocation or a wrong result."""
    openvino = [e for e in Bundle.open(bundle_copy).manifest.engines if e.target == "openvino:cpu"]
    reseal(bundle_copy, engines=openvino[:1])
    assert here("run", bundle_copy, coffee).returncode == 0
    reseal(bundle_copy, **FORGERIES[name](Bundle.open(bundle_copy)))
    done = here("run", bundle_copy, coffee)
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.startswith("vsa-rt: ")


def test_a_moved_bundle_works(bundle_copy: Path, tmp_path: Path, coffee: Path) -> None:
    moved = tmp_path / "mit Leerzeichen und ß"
    bundle_copy.rename(moved)
    with vsa_rt.load(moved) as rt:
        [said] = rt([coffee])
    assert isinstance(said, Sentiment)
    with vsa_rt.load(str(moved)) as rt:
        assert rt(coffee) == [said]


def test_a_read_only_bundle_works(bundle_copy: Path, coffee: Path) -> None:
    for path in [bundle_copy, *bundle_copy.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = files_of(bundle_copy)
    with vsa_rt.load(bundle_copy) as rt:
        assert len(rt([coffee])) == 1
    assert files_of(bundle_copy) == before


def test_sealing_is_repeatable(bundle_copy: Path) -> None:
    manifest = Bundle.open(bundle_copy).manifest
    before = (bundle_copy / MANIFEST).read_bytes()
    assert seal_folder(bundle_copy, manifest) == manifest
    assert (bundle_copy / MANIFEST).read_bytes() == before
    assert seal(manifest).digest == manifest.digest


# Writing


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    final = tmp_path / "new"

    def fail() -> None:
        with new_folder(final) as work:
            (work / "some").write_text("x")
            assert not final.exists()
            raise RuntimeError("halfway")

    with pytest.raises(RuntimeError, match="halfway"):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_an_old_bundle_is_replaced_and_what_is_none_is_kept(
    bundle_copy: Path, tiny_recipe: Path, here: Cli, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("years of work")
    extension = tmp_path / "extension"
    extension.mkdir()
    (extension / MANIFEST).write_text('{"manifest_version": 3, "name": "a browser extension"}')
    (extension / "code.js").write_text("years of work")
    link = tmp_path / "link"
    link.symlink_to(bundle_copy)
    file = tmp_path / "file"
    file.write_text("years of work")
    before = {p: files_of(p) for p in (other, extension, bundle_copy)}
    for final in (other, extension, link, file, file / "below"):
        done = here("export", tiny_recipe, "-o", final)
        assert done.returncode == 2, (final, done)
        assert str(final) in done.stderr
    assert {p: files_of(p) for p in before} == before
    assert file.read_text() == "years of work"
    with new_folder(bundle_copy) as work:
        (work / MANIFEST).write_text("{}")
    assert files_of(bundle_copy) == [MANIFEST]


def test_an_empty_folder_may_become_a_bundle(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with new_folder(tmp_path / "empty") as work:
        (work / MANIFEST).write_text("{}")
    assert files_of(tmp_path / "empty") == [MANIFEST]


def test_a_failed_gate_writes_nothing(
    tiny_recipe: Path, toy_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vsa_rt.engines.executor import GraphExecutor
    from vsa_rt.pipeline.build import BuildOptions, build

    run = GraphExecutor.run
    monkeypatch.setattr(
        GraphExecutor, "run", lambda self, inputs: {k: v * 1.01 for k, v in run(self, inputs).items()}
    )
    with pytest.raises(GateError, match=r"small: scaled by 1\.01"):
        build(str(tiny_recipe), tmp_path / "b", BuildOptions(data=toy_data))
    assert list(tmp_path.iterdir()) == []


def _wait_for(condition: Callable[[], bool], process: subprocess.Popen[bytes]) -> bool:
    while process.poll() is None:
        if condition():
            return True
        time.sleep(0.002)
    return False


@pytest.mark.slow
def test_a_killed_build_leaves_the_old_bundle_or_nothing_and_the_next_cleans_up(
    tiny_recipe: Path, toy_data: Path, bundle_copy: Path, tmp_path: Path
) -> None:
    """Killed when the graph lies there, when engines do, and when the manifest does."""
    for library in ("torch", "openvino"):
        pytest.importorskip(library, reason="the build that is killed needs it")
    folder = tmp_path / "builds"
    folder.mkdir()
    final = folder / "tiny"

    def left() -> list[Path]:
        return list(folder.glob(".tiny.partial-*"))

    def build() -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "vsa_rt", "build", str(tiny_recipe), "-o", str(final)]
        more = ["--data", str(toy_data), "--target", "openvino:cpu", "--precision", "fp32", "--json"]
        return subprocess.Popen([*command, *more], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    moments: list[Callable[[], bool]] = [
        lambda: any((p / "graph.onnx").exists() for p in left()),
        lambda: any((p / "engines").exists() for p in left()),
        lambda: any((p / MANIFEST).exists() for p in left()),
    ]
    for number, moment in enumerate(moments):
        old = number % 2 == 1
        shutil.rmtree(final, ignore_errors=True)
        if old:
            shutil.copytree(bundle_copy, final)
        process = build()
        caught = _wait_for(moment, process)
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
        process.wait()
        if caught and old and final.exists():
            assert (final / MANIFEST).read_bytes() == (bundle_copy / MANIFEST).read_bytes()
        if final.exists():
            assert old or process.returncode == 0
            Bundle.open(final).verify()
        if number < 2:  # the manifest is the last file: the build may be done before the signal comes
            assert caught, "the build was too quick to be killed"
            assert left()
    process = build()
    assert process.wait() == 0
    assert left() == []
    Bundle.open(final).verify()


def test_leftovers_of_a_running_build_are_left_alone(tmp_path: Path) -> None:
    stale = tmp_path / ".new.partial-dead"
    stale.mkdir()
    unrelated = tmp_path / ".newer.partial-abc"
    unrelated.mkdir()
    with new_folder(tmp_path / "new") as running:
        with new_folder(tmp_path / "new") as work:
            (work / MANIFEST).write_text('{"schema": 1, "vsa_rt": "0", "digest": ""}')
        assert running.exists()
        (running / MANIFEST).write_text("{}")
    assert unrelated.exists()
    assert not stale.exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == [".newer.partial-abc", "new"]


def test_an_old_bundle_that_stepped_aside_comes_back(tmp_path: Path) -> None:
    aside = tmp_path / ".new.partial-dead-old"
    aside.mkdir()
    (aside / MANIFEST).write_text('{"schema": 1, "vsa_rt": "0", "digest": ""}')
    with pytest.raises(RuntimeError, match="stopped"), new_folder(tmp_path / "new"):
        raise RuntimeError("stopped")
    assert [p.name for p in tmp_path.iterdir()] == ["new"]


def test_golden_tensors_are_numbers_only(tmp_path: Path) -> None:
    from vsa_rt.golden import golden_to_bytes, read_golden

    data = golden_to_bytes({"x": np.zeros((1, 2, 2, 3), np.uint8)}, {"t": np.ones((1, 4), np.float32)}, ["a"])
    shapes = {k: v.shape for k, v in read_golden(data).items()}
    assert shapes == {"input.x": (1, 2, 2, 3), "tap.t": (1, 4), "labels": (1,)}
    np.savez(tmp_path / "o.npz", x=np.array([object()], dtype=object), allow_pickle=True)
    for bad in ((tmp_path / "o.npz").read_bytes(), data[:40], b"", b"PK\x03\x04rubbish"):
        with pytest.raises(BundleError, match="golden"):
            read_golden(bad)


# The recipe inside a manifest, against the manifest

_OBJECTS = InputRecord(name="objects", dtype="float32", shape=[6, 96], rows=True)


def _encoder(name: str, architecture: str = "timm:test_resnet") -> Backbone:
    return Backbone(name=name, architecture=architecture)


def _graph_of_objects(**options: Any) -> Backbone:
    return Backbone(name="g", architecture="object-graph", reads="r", options={"count": 6} | options)


@pytest.fixture
def wired(tiny_bundle: Path) -> Callable[..., bytes]:
    """A manifest with a digest that is right, of a recipe whose object graph takes ready objects."""
    known = Bundle.open(tiny_bundle).manifest

    def make(
        *more: Backbone,
        options: dict[str, Any] | None = None,
        inputs: list[InputRecord] | None = None,
        taps: dict[str, str] | None = None,
    ) -> bytes:
        assert known.recipe is not None
        backbones = [_encoder("r"), _graph_of_objects(**(options or {"features": 96})), *more]
        head = Head(kind="linear", features=[b.name for b in backbones])
        recipe = msgspec.structs.replace(known.recipe, backbones=backbones, head=head)
        kinds = {"r": "backbone", "g": "backbone"} if taps is None else taps
        records = [msgspec.convert({"name": n, "width": 96, "kind": k}, TapRecord) for n, k in kinds.items()]
        scores = [t for t in known.taps if t.kind == "scores"]
        images = [i for i in known.inputs if i.resize is not None]
        given = [*images, *([_OBJECTS] if inputs is None else inputs)]
        exact = {n: "fp32" for n, kind in kinds.items() if kind == "backbone"}
        changed = msgspec.structs.replace(
            known,
            recipe=recipe,
            inputs=given,
            taps=[*records, *scores],
            graphs=[msgspec.structs.replace(known.graphs[0], plan=exact)],
            engines=[],
            plans=[],
        )
        return manifest_to_json(seal(changed))

    return make


def test_a_manifest_that_fits_its_recipe_is_read(wired: Callable[..., bytes]) -> None:
    assert manifest_from_json(wired(), "here").inputs[-1] == _OBJECTS
    # What is computed once is one tap; which backbone it stands for, the weights have decided.
    assert manifest_from_json(wired(_encoder("twin")), "here").taps[0].name == "r"
    boxes = InputRecord(name="boxes", dtype="float32", shape=[6, 4], rows=True)
    manifest_from_json(wired(options={"objects": "boxes"}, inputs=[boxes]), "here")
    manifest_from_json(wired(options={"objects": "grid", "count": 5}, inputs=[]), "here")


UNLIKE_ITS_RECIPE: dict[str, tuple[dict[str, Any], str]] = {
    "an input that is missing": ({"inputs": []}, "'objects'"),
    "another number of rows": (
        {"inputs": [msgspec.structs.replace(_OBJECTS, shape=[7, 96])]},
        r"'objects' .*\[7, 96\]",
    ),
    "rows of another length": (
        {"inputs": [msgspec.structs.replace(_OBJECTS, shape=[6, 95])]},
        r"'objects' .*\[6, 95\]",
    ),
    "no rows": ({"inputs": [msgspec.structs.replace(_OBJECTS, rows=False)]}, "'objects'"),
    "another name": ({"inputs": [msgspec.structs.replace(_OBJECTS, name="items")]}, "'items'|'objects'"),
    "one input twice": ({"inputs": [_OBJECTS, _OBJECTS]}, "'objects' .*twice"),
    "an input that nobody takes": (
        {"inputs": [_OBJECTS, msgspec.structs.replace(_OBJECTS, name="frames")]},
        "'frames'",
    ),
    "a ready tensor without rows that nobody takes": (
        {"inputs": [_OBJECTS, InputRecord(name="extra", dtype="float32", shape=[3])]},
        "'extra'",
    ),
    "objects where boxes are taken": ({"options": {"objects": "boxes"}}, "'objects'|'boxes'"),
    "objects where a grid is laid": ({"options": {"objects": "grid", "count": 5}}, "'objects'"),
    "a feature without a tap": ({"taps": {"r": "backbone"}}, "'g'"),
    "a feature whose tap is another thing": ({"taps": {"r": "backbone", "g": "features"}}, "'g'"),
    "one tap twice": ({"taps": {"r": "backbone", "g": "backbone", "scores": "backbone"}}, "'scores' .*twice"),
}


@pytest.mark.parametrize("name", UNLIKE_ITS_RECIPE)
def test_a_manifest_unlike_its_recipe_is_refused(wired: Callable[..., bytes], name: str) -> None:
    changes, says = UNLIKE_ITS_RECIPE[name]
    with pytest.raises(BundleError, match=f"contradicts itself: .*({says}).*; rebuild the bundle"):
        manifest_from_json(wired(**changes), "here")


def test_a_shared_tap_is_of_the_same_architecture(wired: Callable[..., bytes]) -> None:
    with pytest.raises(BundleError, match=r"contradicts itself: .*'other'"):
        manifest_from_json(wired(_encoder("other", "timm:test_efficientnet")), "here")


@pytest.mark.parametrize(
    "options",
    [{"features": 65536}, {"features": 96, "count": 65536}, {"features": 96, "count": 10**30}],
    ids=["wide", "long", "endless"],
)
def test_a_manifest_whose_recipe_would_not_fit_in_memory_is_refused(
    wired: Callable[..., bytes], options: dict[str, int]
) -> None:
    shape = [options.get("count", 6), options["features"]]
    given = [msgspec.structs.replace(_OBJECTS, shape=shape)]
    with pytest.raises(BundleError, match=r"here: .*`backbones\[1\]\.options|here: .*out of range"):
        manifest_from_json(wired(options=options, inputs=given if shape[0] < 2**63 else None), "here")
