"""Every form that weights are published in, from its file to the network, and what is no such file, refused.

The deep ResNet and the signature network are made small here; readers, key names and loading are the ones that the
published files go through.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import re
import struct
import subprocess
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from outcome import fails

from vsa_rt.architecture import ARCHITECTURES, family_of
from vsa_rt.bundle import Bundle
from vsa_rt.errors import CheckpointAbsent, CheckpointError
from vsa_rt.recipe import Backbone, Recipe
from vsa_rt.recipe_file import read_recipe

torch = pytest.importorskip("torch", reason="weights become torch tensors")
pytest.importorskip("timm", reason="the backbone that others read is a network of timm")
safetensors_torch = pytest.importorskip("safetensors.torch", reason="any form may lie in a safetensors file")
inception = pytest.importorskip("torchvision.models.inception", reason="Inception's layers are torchvision's")

from caffe_files import Layer, caffemodel
from published import (
    around_dual_encoding,
    array,
    as_dual_encoding,
    as_efficientnet_pytorch,
    as_fid,
    as_keras,
    as_mxnet,
    as_object_graphs,
    as_yt8m,
    npy,
    npz,
    params,
    saved,
    tgz,
)

from vsa_rt.export.backbones import LoadedBackbone
from vsa_rt.export.ensemble import load_backbones
from vsa_rt.export.formats import FORMATS
from vsa_rt.export.head import make_head
from vsa_rt.export.head_file import head_to_bytes, load_head
from vsa_rt.export.makers import make_network
from vsa_rt.export.networks import dual_encoding, inception2015, resnet152v2

State = dict[str, Any]
Cli = Callable[..., "subprocess.CompletedProcess[str]"]

#: timm's smallest residual network gives 96 features.
WIDTH = 96
HEAD = """\
schema = 1
name = "one"
task = "binary"
labels = ["dark", "bright"]

"""
R = '[[backbones]]\nname = "r"\narchitecture = "timm:test_resnet"\ncheckpoint.path = "r.safetensors"\n\n'
LINEAR = '[head]\nkind = "linear"\nfeatures = ["x"]\n'


def as_caffemodel(state: State) -> bytes:
    """CaffeNet's convolutions with the groups that they have."""
    groups = {"conv2": 2, "conv4": 2, "conv5": 2}
    pairs: dict[str, list[Any]] = {}
    for key, tensor in state.items():
        pairs.setdefault(key.partition(".")[0], []).append(np.asarray(tensor))
    return caffemodel([Layer(n, "Convolution", blobs, groups.get(n, 1)) for n, blobs in pairs.items()])


@dataclass(frozen=True)
class Case:
    """One published form.

    Attributes:
        form: Its name in a recipe.
        architecture: Whose weights.
        suffix: Of its files.
        publish: The network's own weights under the published names and in the published shapes.
        pack: Those to a file.
        absent: A key of the network that a damaged file lacks ...
        bent: ... and one that is of another shape there.
        options: The recipe's, where the usual network is large.
        image: Whether it reads images.
    """

    form: str
    architecture: str
    suffix: str
    publish: Callable[[State], State]
    pack: Callable[[State], bytes]
    absent: str
    bent: str
    options: dict[str, str | int | float | bool] = field(default_factory=dict)
    image: bool = False

    @property
    def pickled(self) -> bool:
        """Whether its files are PyTorch's."""
        return self.suffix.startswith(".pt")

    @property
    def entry(self) -> Backbone:
        """The backbone, as a recipe has it."""
        reads = "" if self.image else "r"
        return Backbone(name="x", architecture=self.architecture, reads=reads, options=self.options)

    def recipe(self, path: str, more: str = "") -> str:
        """A recipe whose last backbone is this one, named ``x``."""
        table = f'[[backbones]]\nname = "x"\narchitecture = "{self.architecture}"\n'
        table += "" if self.image else 'reads = "r"\n'
        table += "".join(f"options.{key} = {json.dumps(value)}\n" for key, value in self.options.items())
        table += f'[backbones.checkpoint]\nformat = "{self.form}"\n{more}'
        table += f'path = "{path}"\n\n' if path else "\n"
        return HEAD + ("" if self.image else R) + table + LINEAR


CASES = [
    Case("timm", "timm:test_resnet", ".pth", dict, saved, "conv1.0.weight", "conv1.1.weight", image=True),
    Case("efficientnet-pytorch", "timm:tf_efficientnet_lite0", ".pth", as_efficientnet_pytorch, saved,
         "conv_stem.weight", "blocks.1.0.bn3.bias", image=True),
    Case("mxnet", "resnet152-v2", ".params", as_mxnet, params,
         "stages.1.1.conv2.weight", "stages.0.0.sc.weight", image=True),
    Case("pytorch-fid", "inception-2015", ".pth", as_fid, saved,
         "Conv2d_1a_3x3.bn.running_var", "Conv2d_1a_3x3.conv.weight", image=True),
    Case("youtube8m", "youtube8m-pca", ".tgz", as_yt8m,
         lambda s: tgz({name: npy(array(v)) for name, v in s.items()}), "mean", "eigenvecs"),
    Case("keras-arrays", "shallow-cnn", ".npz", as_keras, npz, "conv.bias", "dense.weight", {"classes": 5}),
    Case("dual-encoding", "dual-encoding", ".pth.tar", as_dual_encoding,
         lambda s: saved(around_dual_encoding(s), zipped=False),
         "rnn.weight_hh_l0_reverse", "convs1.2.weight"),
    Case("object-graphs", "object-graph", ".pt", as_object_graphs,
         lambda s: saved({"epoch": 60, "model_state_dict": s}),
         "wk.bias", "gcn.1.norm.weight", {"count": 3, "features": WIDTH}),
    Case("caffe", "caffenet", ".caffemodel", dict, as_caffemodel, "conv2.bias", "conv3.weight", {"top": "pool5"},
         image=True),
    Case("cvpr2023", "sentiment-student", ".pth.tar", lambda s: {f"stu.{k}": v for k, v in s.items()},
         lambda s: saved({"epoch": 30, "arch": "resnet18", "state_dict": s}),
         "stage2.0.conv1.weight", "stage4.1.bn2.bias", {"arch": "resnet18"}, image=True),
]  # fmt: skip
EVERY = pytest.mark.parametrize("case", CASES, ids=lambda c: c.form)
BY_FORM = {case.form: case for case in CASES}


#: At its full size, for the one test that takes it.
INCEPTION = inception2015.Inception2015


def stem() -> Any:
    """Inception's first layer."""
    made: Any = torch.nn.Module()
    made.Conv2d_1a_3x3 = inception.BasicConv2d(3, 4, kernel_size=3, stride=2)
    made.width = 4
    return made


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small twins of the networks whose sizes no option sets."""
    twin = partial(resnet152v2.ResNet152V2, units=(1, 2), widths=(8, 16), size=28)
    monkeypatch.setattr(resnet152v2, "ResNet152V2", twin)
    monkeypatch.setattr(inception2015, "Inception2015", stem)
    signature = partial(dual_encoding.DualEncoding, hidden=6, filters=5, mapping=13)
    monkeypatch.setattr(dual_encoding, "DualEncoding", signature)


def state_of(case: Case, seed: int = 0) -> State:
    """Weights of the case's network; no two of its tensors are alike, and variances are positive."""
    network = make_network(case.entry, WIDTH)
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for key, tensor in (network.weights or network.module).state_dict().items():
        values = torch.randn(tensor.shape, generator=generator)
        positive = key.endswith("running_var") or key == "eigenvals"
        state[key] = values.abs() + 0.5 if positive else values
        if not tensor.is_floating_point():
            state[key] = tensor
    return state


def put(folder: Path, case: Case, data: bytes, suffix: str = "", more: str = "") -> Path:
    """The file beside a recipe that names it, and beside that the network it reads; gives the recipe."""
    (folder / f"x{suffix or case.suffix}").write_bytes(data)
    if not case.image:
        reader = BY_FORM["timm"]
        safetensors_torch.save_file(state_of(reader, 9), folder / "r.safetensors")
    path = folder / "one.toml"
    path.write_text(case.recipe(f"x{suffix or case.suffix}", more), encoding="utf-8")
    return path


def load(path: Path) -> LoadedBackbone:
    """The last backbone of a recipe."""
    return load_backbones(read_recipe(path), path.parent, {})[-1]


def holds(backbone: LoadedBackbone, wanted: State) -> bool:
    own = (backbone.made.weights or backbone.network).state_dict()
    if "bn_data.weight" in wanted:  # MXNet's symbol ignores what is stored
        wanted = wanted | {"bn_data.weight": torch.ones(3)}
    counters = {k for k in own if k.endswith("num_batches_tracked")}
    return own.keys() == wanted.keys() and all(torch.equal(own[k], wanted[k]) for k in own.keys() - counters)


# What is loaded


def test_every_format_has_a_case_and_an_architecture() -> None:
    assert [c.form for c in CASES] == list(FORMATS)
    assert {f for a in ARCHITECTURES.values() for f in a.formats} == FORMATS.keys()
    for case in CASES:
        assert case.form in ARCHITECTURES[family_of(case.architecture)].formats
    assert all(f.published for f in FORMATS.values())


@EVERY
def test_a_published_file_is_loaded_whole(tmp_path: Path, case: Case) -> None:
    state = state_of(case)
    data = case.pack(case.publish(state))
    found = load(put(tmp_path, case, data))
    assert holds(found, state)
    assert found.record.sha256 == hashlib.sha256(data).hexdigest()
    assert found.record.found == str(tmp_path / f"x{case.suffix}")
    assert found.record.random_seed is None
    assert not found.network.training


@pytest.mark.parametrize(
    ("case", "own"),
    # The names of the published port of Inception are the network's own.
    [(c, own) for c in CASES for own in (True, False) if not (own and c.form in ("timm", "pytorch-fid"))],
    ids=lambda v: {True: "own", False: "published"}[v] if isinstance(v, bool) else v.form,
)
def test_a_safetensors_file_stands_in(tmp_path: Path, case: Case, own: bool) -> None:
    """With the published names and shapes, or with the network's own."""
    state = state_of(case)
    written = state if own else case.publish(state)
    tensors = {k: torch.as_tensor(v).contiguous() for k, v in written.items()}
    path = put(tmp_path, case, safetensors_torch.save(tensors), ".safetensors")
    assert holds(load(path), state)


def test_inceptions_file_is_loaded_at_its_full_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """566 entries, of which two are the classifier's."""
    monkeypatch.setattr(inception2015, "Inception2015", INCEPTION)
    case = BY_FORM["pytorch-fid"]
    state = state_of(case)
    assert len(case.publish(state)) == 566
    assert holds(load(put(tmp_path, case, case.pack(case.publish(state)))), state)


@pytest.mark.parametrize("wrap", [dict, lambda s: {"model_state_dict": s, "epoch": 60}], ids=["bare", "full"])
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_both_forms_of_object_graphs_in_both_forms_of_torch(tmp_path: Path, wrap: Any, zipped: bool) -> None:
    case = BY_FORM["object-graphs"]
    state = state_of(case)
    published = state if wrap is dict else as_object_graphs(state)
    assert holds(load(put(tmp_path, case, saved(wrap(published), zipped))), state)


def test_the_pca_whitens_with_what_was_loaded(tmp_path: Path) -> None:
    """The matrix that it multiplies with is made of the file's arrays, not a part of the file."""
    case = BY_FORM["youtube8m"]
    state = state_of(case)
    network = load(put(tmp_path, case, case.pack(case.publish(state)))).network
    features = torch.from_numpy(np.random.default_rng(1).standard_normal((2, WIDTH)).astype(np.float32))
    whitened = (features - state["mean"]).double() @ state["eigenvecs"].double()
    wanted = (whitened / (state["eigenvals"].double() + 1e-4).sqrt()).clamp(-2, 2)
    torch.testing.assert_close(network(features).double(), wanted, rtol=1e-4, atol=1e-4)


def test_the_usual_format_needs_no_word(tmp_path: Path) -> None:
    for case in CASES:
        usual = ARCHITECTURES[family_of(case.architecture)].formats[0]
        if case.form != usual or case.form == "pytorch-fid":
            continue
        folder = tmp_path / case.form
        folder.mkdir()
        state = state_of(case)
        path = put(folder, case, case.pack(case.publish(state)))
        path.write_text(path.read_text().replace(f'format = "{case.form}"\n', ""), encoding="utf-8")
        assert holds(load(path), state), case.form


def put_head(recipe: Recipe, folder: Path) -> list[LoadedBackbone]:
    """A head for the recipe over the backbones beside it."""
    backbones = load_backbones(recipe, folder, {})
    widths = {b.name: b.width for b in backbones}
    head = make_head(recipe, sum(widths[name] for name in recipe.head.features))
    (folder / "head.safetensors").write_bytes(head_to_bytes(head, recipe, backbones))
    return backbones


ENSEMBLE = """\
[[backbones]]
name = "r"
architecture = "resnet152-v2"
checkpoint.path = "r.params"

[[backbones]]
name = "pca"
architecture = "youtube8m-pca"
reads = "r"
checkpoint.path = "pca.tgz"

[[backbones]]
name = "y"
architecture = "shallow-cnn"
reads = "pca"
options = { classes = 5 }
checkpoint.path = "y.npz"

[[backbones]]
name = "s"
architecture = "dual-encoding"
reads = "r"
checkpoint.path = "s.pth.tar"

[[backbones]]
name = "maker"
architecture = "timm:test_resnet"

[[backbones]]
name = "g"
architecture = "object-graph"
reads = "maker"
options = { count = 3, features = 96 }
checkpoint.path = "g.pt"

[head]
kind = "moe"
hidden = [4]
features = ["r", "y", "s", "g"]
weights = "head.safetensors"
"""


def test_an_ensemble_of_published_files_is_exported_and_checked(
    here: Cli, tmp_path: Path, toy_data: Path
) -> None:
    for library in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(library, reason="the ensemble is exported to ONNX")
    path = tmp_path / "published.toml"
    path.write_text(HEAD.replace('"one"', '"published"') + ENSEMBLE, encoding="utf-8")
    recipe, width = read_recipe(path), {"r": 3, "pca": 16, "y": 1024, "s": 16, "g": WIDTH}
    published = [b for b in recipe.backbones if b.checkpoint.path]
    for entry in published:
        network = make_network(entry, width[entry.name])
        state = {k: v.clone() for k, v in network.module.state_dict().items()}
        if entry.name == "pca":
            state["eigenvals"] += 30
        case = BY_FORM[ARCHITECTURES[entry.architecture].formats[0]]
        (tmp_path / entry.checkpoint.path).write_bytes(case.pack(case.publish(state)))
    put_head(recipe, tmp_path)
    out = tmp_path / "out"
    done = here("export", path, "-o", out, "--data", toy_data)
    assert done.returncode == 0, done.stderr
    manifest = Bundle.open(out).manifest
    assert "random" not in done.stdout
    assert manifest.checkpoints.keys() == {*width, "head"}
    for entry in published:
        record, file = manifest.checkpoints[entry.name], tmp_path / entry.checkpoint.path
        assert record.found == str(file)
        assert record.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
        assert record.random_seed is None
    check = json.loads(here("check", out, "--data", toy_data, "--json").stdout)
    assert (check["reference"], check["passed"], check["random_weights"]) == ("torch", True, False)


# What is refused, on the command line: one line, exit code 2, and nothing where the result would be


@pytest.fixture
def refused(here: Cli, tmp_path: Path) -> Callable[..., str]:
    """Exports the recipe, which must fail; gives the line that says why."""

    def export(path: Path, says: str, *more: object) -> str:
        before = sorted(p.name for p in tmp_path.rglob("*"))
        done = here("export", path, "-o", tmp_path / "out", *more)
        fails(done, 2, says)
        assert sorted(p.name for p in tmp_path.rglob("*")) == before
        return done.stderr

    return export


@EVERY
def test_keys_that_do_not_fit_are_all_named(refused: Any, tmp_path: Path, case: Case) -> None:
    state = state_of(case)
    state[case.bent] = torch.ones([2 * size + 1 for size in state[case.bent].shape])
    del state[case.absent]
    data = case.pack(case.publish(state) | {"zz.weight": torch.ones(2)})
    path = put(tmp_path, case, data)
    with pytest.raises(CheckpointError):
        load(path)
    said = refused(path, rf"key `backbones\.x\.checkpoint`: {re.escape(str(tmp_path))}/x\S* does not fit")
    assert f"missing {case.absent};" in said
    assert "unexpected zz.weight;" in said
    assert re.search(rf"mis-shaped {re.escape(case.bent)} \(.*\) instead of \(.*\)", said), said
    assert "more" not in said


@EVERY
def test_a_file_that_is_cut_off_is_one_error(refused: Any, tmp_path: Path, case: Case) -> None:
    data = case.pack(case.publish(state_of(case)))
    for kept in (len(data) // 2, len(data) - 1, 100, 0):
        refused(put(tmp_path, case, data[:kept]), rf"/x{re.escape(case.suffix)}: ")
    with pytest.raises(CheckpointError):
        load(tmp_path / "one.toml")


@EVERY
def test_another_file_than_the_pinned_one_is_not_parsed(refused: Any, tmp_path: Path, case: Case) -> None:
    path = put(tmp_path, case, b"rubbish", more=f'sha256 = "{"0" * 64}"\n')
    refused(path, rf"SHA-256 is {hashlib.sha256(b'rubbish').hexdigest()}, the recipe wants 0000")


@EVERY
def test_an_absent_file_is_named_and_how_to_get_it(refused: Any, tmp_path: Path, case: Case) -> None:
    path = put(tmp_path, case, b"", more='obtain = "Ask its authors."\n')
    (tmp_path / f"x{case.suffix}").unlink()
    with pytest.raises(CheckpointAbsent):
        load(path)
    said = refused(path, r"key `backbones\.x\.checkpoint\.path`: no file .*Ask its authors\.")
    assert f"{tmp_path}/x{case.suffix}" in said
    path.write_text(case.recipe("", 'obtain = "Ask its authors."\n'), encoding="utf-8")
    with pytest.raises(CheckpointAbsent):
        load(path)
    said = refused(path, "key `backbones.x.checkpoint`: missing")
    for words in ("--weights x=PATH", "--random-weights", "Ask its authors."):
        assert words in said
    refused(path, "cannot be read: No such file", "--weights", f"x={tmp_path / 'nowhere'}")
    refused(path, "cannot be read: Is a directory", "--weights", f"x={tmp_path}")


@pytest.mark.parametrize(
    ("name", "first", "file"),
    [
        ("smap2021-e", "e", "efficientnet-b2-8bb594d6.pth"),
        ("smap2021-r", "r", "resnet-152-0000.params"),
        ("smap2021-y", "inception", "pt_inception-2015-12-05-6726825d.pth"),
        ("smap2021-s", "r", "resnet-152-0000.params"),
        ("smap2021-g", "g", "model-gcn"),
        ("mediaeval2021-1", "e", "efficientnet-b2-8bb594d6.pth"),
    ],
)
def test_a_papers_recipe_without_weights_says_which_files_it_wants(
    refused: Any, name: str, first: str, file: str
) -> None:
    said = refused(Path(name), rf"key `backbones\.{first}\.checkpoint`: missing")
    for words in (f"--weights {first}=PATH", "--random-weights", file):
        assert words in said


# What is not executed


class Bomb:
    """Unpickling it would make a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("case", [c for c in CASES if c.pickled], ids=lambda c: c.form)
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_bomb_in_a_torch_file_is_one_error(
    refused: Any, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, case: Case, zipped: bool
) -> None:
    made = tmp_path_factory.mktemp("marker") / "executed"
    bomb = Bomb(made)
    pickle.loads(pickle.dumps(bomb))  # noqa: S301 - the bomb works where it is let
    made.rmdir()
    weights = {"a": torch.ones(1), "b": bomb}
    values: list[Any] = [{"state_dict": weights}, weights, [bomb], bomb]
    if case.form == "dual-encoding":
        values = [around_dual_encoding(weights), weights, [bomb], bomb]
    else:
        values.append({"state_dict": {"a": torch.ones(1)}, "opt": bomb})
    for value in values:
        said = refused(
            put(tmp_path, case, saved(value, zipped)), rf"/x{re.escape(case.suffix)}: .*expected|holds"
        )
        assert not made.exists(), said
    refused(put(tmp_path, case, pickle.dumps(bomb)), "not a PyTorch file")
    assert not made.exists()


def test_the_options_beside_a_signature_are_not_restored(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The authors' script saves an object there, so anything may lie there; it is left alone."""
    made = tmp_path_factory.mktemp("marker") / "executed"
    case = BY_FORM["dual-encoding"]
    state = state_of(case)
    for zipped in (True, False):
        data = saved(around_dual_encoding(case.publish(state), Bomb(made)), zipped)
        assert holds(load(put(tmp_path, case, data)), state)
    assert not made.exists()


@pytest.mark.parametrize("form", ["youtube8m", "keras-arrays"])
def test_a_bomb_among_arrays_is_one_error(
    refused: Any, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, form: str
) -> None:
    made = tmp_path_factory.mktemp("marker") / "executed"
    objects = np.empty(1, object)
    objects[0] = Bomb(made)
    for data in (npz({"a": objects}), tgz({"a": npy(objects)}), npy(objects)):
        refused(put(tmp_path, BY_FORM[form], data), "holds object, expected")
        assert not made.exists()


# What is not believed


class Stored:
    """A storage of 2^60 numbers, as a stream declares it."""

    identity = ("storage", torch.FloatStorage, "0", "cpu", 2**60)


class Declared:
    """A tensor that fills it."""

    def __reduce__(self) -> tuple[Any, ...]:
        return torch._utils._rebuild_tensor_v2, (Stored(), 0, (2**60,), (1,), False, OrderedDict())


class Pickler(pickle.Pickler):
    """Writes ``Stored`` as torch writes a storage."""

    def persistent_id(self, value: Any) -> Any:
        return value.identity if isinstance(value, Stored) else None


def huge_torch(zipped: bool, key: str) -> bytes:
    stream = io.BytesIO()
    Pickler(stream, 2).dump({key: Declared()})
    if not zipped:
        system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}
        header = b"".join(pickle.dumps(v, 2) for v in (0x1950A86A20F9469CFC6C, 1001, system))
        return header + stream.getvalue() + pickle.dumps(["0"], 2) + (2**60).to_bytes(8, "little") + bytes(64)
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", stream.getvalue())
        archive.writestr("archive/data/0", bytes(64))
    return file.getvalue()


def huge_npy() -> bytes:
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1152921504606846976,)}\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(64)


def huge_npz() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("mean.npy", huge_npy())
    return file.getvalue()


def huge_params() -> bytes:
    found = struct.pack("<QQQ", 0x112, 0, 1) + struct.pack("<Iiiqiii", 0xF993FAC9, 0, 1, 2**60, 1, 0, 0)
    return found + bytes(64) + struct.pack("<QQ", 1, 1) + b"a"


def huge_safetensors(header: bool) -> bytes:
    if header:
        return (2**60).to_bytes(8, "little") + b"{}" + bytes(64)
    text = (
        b'{"a": {"dtype": "F32", "shape": [1152921504606846976], "data_offsets": [0, 4611686018427387904]}}'
    )
    return len(text).to_bytes(8, "little") + text + bytes(64)


HUGE = [
    *(
        (c.form, "", huge_torch(zipped, "a"), "declares")
        for c in CASES
        if c.pickled
        for zipped in (True, False)
    ),
    ("mxnet", "", huge_params(), f"needs {2**62} bytes"),
    ("youtube8m", "", tgz({"mean": huge_npy()}), "declares float32 .1152921504606846976"),
    ("youtube8m", ".npz", huge_npz(), "declares float32 .1152921504606846976"),
    ("keras-arrays", "", huge_npz(), "declares float32 .1152921504606846976"),
    *((c.form, ".safetensors", huge_safetensors(True), "not a checkpoint") for c in CASES),
    *((c.form, ".safetensors", huge_safetensors(False), "not a checkpoint") for c in CASES[:1]),
]


@pytest.mark.parametrize(
    ("form", "suffix", "data", "says"), HUGE, ids=[f"{h[0]}{h[1]}-{i}" for i, h in enumerate(HUGE)]
)
def test_a_declared_size_is_not_believed(
    refused: Any, tmp_path: Path, form: str, suffix: str, data: bytes, says: str
) -> None:
    assert len(data) < 4096
    refused(put(tmp_path, BY_FORM[form], data, suffix), says)


# Heads


HEADED = """\
[head]
kind = "moe"
hidden = [4]
features = ["r", "x"]
weights = "head.safetensors"
"""


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('["r", "x"]', '["x", "r"]', "trained for features"),
        ('["dark", "bright"]', '["bright", "dark"]', "trained for labels"),
        ('["dark", "bright"]', '["bad", "good"]', "trained for labels"),
        (
            'task = "binary"\nlabels = ["dark", "bright"]',
            'task = "single-label"\nlabels = ["a", "b", "c"]',
            "trained for",
        ),
        ('kind = "moe"', 'kind = "nn"', "trained for kind"),
        ('kind = "moe"', 'kind = "moe"\nunit_norm = true', "trained for unit_norm"),
        ('kind = "moe"', 'kind = "moe"\nexperts = 3', r"mis-shaped experts\.bias \(6,\) instead of \(4,\)"),
        ('kind = "moe"', 'kind = "moe"\ngate_bias = true', r"unexpected gates\.bias"),
        ("hidden = [4]", "hidden = [5]", r"mis-shaped .*fc\.weight"),
    ],
    ids=["order", "label-order", "labels", "classes", "kind", "unit-norm", "experts", "gate-bias", "hidden"],
)
def test_a_head_that_was_trained_for_something_else_is_refused(
    refused: Any, tmp_path: Path, old: str, new: str, says: str
) -> None:
    """The head on disk is another recipe's; nothing of it is taken."""
    case = BY_FORM["object-graphs"]
    path = put(tmp_path, case, case.pack(case.publish(state_of(case))))
    text = path.read_text(encoding="utf-8").replace(LINEAR, HEADED)
    assert old in text
    other = tmp_path / "other.toml"
    other.write_text(text.replace(old, new), encoding="utf-8")
    path.write_text(text, encoding="utf-8")
    recipe = read_recipe(other)
    load_head(recipe, tmp_path, put_head(recipe, tmp_path))  # it is a good head of its own recipe
    refused(path, says)
    refused(path, says, "--weights", f"head={tmp_path / 'head.safetensors'}")


def test_what_is_no_head_is_refused(refused: Any, tmp_path: Path) -> None:
    case = BY_FORM["object-graphs"]
    path = put(tmp_path, case, case.pack(case.publish(state_of(case))))
    path.write_text(path.read_text(encoding="utf-8").replace(LINEAR, HEADED), encoding="utf-8")
    refused(path, r"key `head\.weights`: no file .*vsa-rt fit")
    refused(path, "is not a head file", "--weights", f"head={tmp_path / 'absent'}")
    refused(path, "trained for kind None", "--weights", f"head={tmp_path / 'r.safetensors'}")
    for data in (b"", huge_safetensors(True), huge_safetensors(False), saved({"fc.weight": torch.ones(2)})):
        (tmp_path / "head.safetensors").write_bytes(data)
        refused(path, r"/head\.safetensors is not a head file")
