"""The folders, the packaging and the import rule are what docs/design says."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import tomllib

ROOT = Path(__file__).resolve().parents[1]
#: Package to its folder, as pyproject maps them.
FOLDERS = {
    "vsa_rt": ROOT / "src" / "vsa_rt",
    "vsa_rt.export": ROOT / "export",
    "vsa_rt.engines": ROOT / "engines",
    "vsa_rt.runtime": ROOT / "runtime",
    "vsa_rt.bench": ROOT / "bench",
}
pytestmark = pytest.mark.skipif(
    not (ROOT / "pyproject.toml").is_file(), reason="the repository is not around these tests"
)

#: What each layer may import of the others; its own modules are always allowed. Root nouns import none.
MAY_IMPORT = {
    "root": set[str](),
    "export": {"root"},
    "engines": {"root"},
    "runtime": {"root", "engines"},
    "bench": {"root", "export", "engines", "runtime"},
    "pipeline": {"root", "export", "engines", "runtime", "bench"},
    "cli": {"root", "export", "engines", "runtime", "bench", "pipeline"},
}
#: The documented exceptions: ``vsa_rt.load`` and ``vsa_rt.video`` are lazy attributes.
LAZY = {("vsa_rt", "vsa_rt.runtime.load"), ("vsa_rt", "vsa_rt.runtime.video")}
BUILD_ONLY = {
    "google",
    "torch",
    "torchvision",
    "timm",
    "onnx",
    "onnxscript",
    "sklearn",
    "skimage",
    "safetensors",
}
ENGINE_LIBRARIES = {"openvino", "onnxruntime", "tensorrt", "tensorrt_rtx"}


def modules() -> dict[str, Path]:
    """Every module's dotted name and file."""
    found: dict[str, Path] = {}
    for package, folder in FOLDERS.items():
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            dotted = ".".join((package, *parts)).removesuffix(".__init__")
            found[dotted] = path
    return found


def layer(module: str) -> str:
    """Which layer a module belongs to."""
    parts = module.split(".")
    if len(parts) > 1 and parts[1] in MAY_IMPORT:
        return parts[1]
    if len(parts) > 1 and parts[1] in ("render", "__main__"):
        return "cli"
    return "root"


def imported(source: str, known: set[str]) -> list[tuple[str, bool]]:
    """Imported modules, and whether the import stands inside a function. Type checking alone does not count."""
    found: list[tuple[str, bool]] = []

    def visit(node: ast.AST, lazy: bool) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            for other in node.orelse:
                visit(other, lazy)
            return
        if isinstance(node, ast.Import):
            found.extend((alias.name, lazy) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                found.append((inner if inner in known else base, lazy))
        inside = lazy or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            visit(child, inside)

    visit(ast.parse(source), False)
    return found


def violations(module: str, source: str, known: set[str]) -> list[str]:
    """Imports of one module that break the rule."""
    found = []
    mine = layer(module)
    for name, lazy in imported(source, known):
        top = name.split(".")[0]
        if top == "vsa_rt":
            other = layer(name)
            allowed = other == mine or other in MAY_IMPORT[mine] or (lazy and (module, name) in LAZY)
        elif name.startswith(".") or top in ("export", "engines", "runtime", "bench"):
            allowed = False
        elif top in BUILD_ONLY:
            allowed = mine in ("export", "pipeline") or (mine == "bench" and lazy)
        elif top in ENGINE_LIBRARIES:
            # A backend that takes several modules has them beside each other: openvino, openvino_session, ….
            allowed = lazy and (module.startswith(f"vsa_rt.engines.{top}") or mine == "bench")
        else:
            allowed = True
        if not allowed:
            found.append(f"{module} imports {name}{' lazily' if lazy else ''}")
    return found


def clocks(source: str) -> list[str]:
    """Names of the wall clock's functions that a source uses."""
    wanted = {"perf_counter", "perf_counter_ns"}
    tree = ast.walk(ast.parse(source))
    return [
        name
        for node in tree
        for name in (
            [node.attr]
            if isinstance(node, ast.Attribute)
            else [a.name for a in node.names]
            if isinstance(node, ast.ImportFrom)
            else []
        )
        if name in wanted
    ]


def test_every_package_folder_is_packaged() -> None:
    table = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    there = {
        ".".join((package, *path.parent.relative_to(folder).parts))
        for package, folder in FOLDERS.items()
        for path in folder.rglob("__init__.py")
    }
    assert set(table["packages"]) == there
    mapped = {name: (ROOT / folder).resolve() for name, folder in table["package-dir"].items()}
    assert mapped == {name: folder.resolve() for name, folder in FOLDERS.items()}


def test_the_type_checkers_view_mirrors_the_package() -> None:
    view = ROOT / "typings" / "vsa_rt"
    for module, path in modules().items():
        inner = Path(*module.split(".")[1:])
        seen = view / inner / "__init__.py" if path.name == "__init__.py" else view / inner.with_suffix(".py")
        assert seen.is_file(), f"{seen} is missing"
        assert seen.resolve() == path.resolve(), f"{seen} leads elsewhere"
    dead = [link for link in view.rglob("*") if not link.exists()]
    assert not dead


def test_importing_the_package_leaves_no_bare_folder_names() -> None:
    code = (
        "import sys, vsa_rt, vsa_rt.runtime.load, vsa_rt.bench.clock, vsa_rt.engines.select;"
        "print(*({'export', 'engines', 'runtime', 'bench'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


@pytest.mark.parametrize("module", sorted(modules()))
def test_imports_follow_the_rule(module: str) -> None:
    known = modules()
    assert violations(module, known[module].read_text(encoding="utf-8"), set(known)) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("vsa_rt.recipe", "from vsa_rt.export import head"),
        ("vsa_rt.bundle", "def f():\n    import vsa_rt.runtime.load"),
        ("vsa_rt.engines.table", "from vsa_rt.runtime.decode import decode"),
        ("vsa_rt.engines.table", "from vsa_rt.export.purpose import OPSET"),
        ("vsa_rt.export.graph", "from vsa_rt.engines import select"),
        ("vsa_rt.runtime.load", "from vsa_rt import bench"),
        ("vsa_rt.runtime.load", "from vsa_rt.export import head"),
        ("vsa_rt.runtime.load", "def f():\n    import torch"),
        ("vsa_rt.runtime.load", "import onnx.helper"),
        ("vsa_rt.bench.clock", "import vsa_rt.pipeline.build"),
        ("vsa_rt.pipeline.check", "from vsa_rt import render"),
        ("vsa_rt.engines.openvino", "import openvino"),
        ("vsa_rt.engines.openvino", "def f():\n    import onnxruntime"),
        ("vsa_rt.runtime.fused", "from . import load"),
        ("vsa_rt.runtime.fused", "import engines"),
    ],
)
def test_the_rule_catches_a_planted_import(module: str, source: str) -> None:
    assert violations(module, source, set(modules()))


def test_the_rule_lets_type_checking_pass() -> None:
    source = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from vsa_rt.runtime.load import load\n"
    assert violations("vsa_rt.recipe", source, set(modules())) == []


def test_one_place_alone_reads_the_wall_clock() -> None:
    assert clocks("import time\ntime.perf_counter_ns()")
    assert clocks("from time import perf_counter")
    users = {name for name, path in modules().items() if clocks(path.read_text(encoding="utf-8"))}
    assert users == {"vsa_rt.bench.clock"}


@pytest.mark.parametrize("module", sorted(modules()))
def test_a_module_stays_small(module: str) -> None:
    assert len(modules()[module].read_text(encoding="utf-8").splitlines()) < 450


def test_the_public_surface_is_what_it_says() -> None:
    import vsa_rt

    assert callable(vsa_rt.load)
    for name in vsa_rt.__all__:
        assert hasattr(vsa_rt, name)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = vsa_rt.nonsense
