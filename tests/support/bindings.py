"""What the real bindings of TensorRT and of CUDA hold: names, signatures and types, as a catalogue.

Run as a program, this prints the catalogue of some modules in JSON: bindings over stub libraries are imported in a
process of their own. The thin wheels of bindings import over libraries that hold nothing but nine empty functions.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import importlib.util
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, TypedDict

ROOT = Path(__file__).resolve().parents[2]
#: Where ``make bindings`` puts them.
FOLDER = ROOT / "build" / "bindings"
#: Every function that the bindings link to.
_FUNCTIONS = (
    "createInferBuilder_INTERNAL",
    "createInferRefitter_INTERNAL",
    "createInferRuntime_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL",
    "createNvOnnxParser_INTERNAL",
    "getBuilderPluginRegistry",
    "getNvOnnxParserVersion",
    "getPluginRegistry",
    "initLibNvInferPlugins",
)
#: What belongs to the interface although its name begins so; pybind's sequences have the last two.
_SPECIAL = ("__members__", "__getitem__", "__len__")
#: C++ names that a docstring says where the Python class was not known yet, and is called otherwise.
_RENAMED = {"IParserError": "ParserError"}


class Member(TypedDict):
    """One name.

    Attributes:
        kind: ``class``, ``module``, ``method`` (functions, too), ``property`` or ``value``.
        type: Of a value or property, as it is documented; the key of a class; empty where nothing says it.
        signatures: Of a method or constructor, one for each overload, as ``(a: A, b: B = ...) -> C``.
        settable: Whether a property can be set.
        bases: Keys of a class and what it derives from.
    """

    kind: str
    type: str
    signatures: list[str]
    settable: bool
    bases: list[str]


class Catalogue(TypedDict):
    """What modules hold.

    Attributes:
        version: Of the first one.
        modules: Module to name to member.
        classes: Class, by its qualified name, to name to member.
    """

    version: str
    modules: dict[str, dict[str, Member]]
    classes: dict[str, dict[str, Member]]


class Missing(Exception):
    """Something that a test needs is not here; the message says what."""


def _member(
    kind: str,
    type_: str = "",
    signatures: list[str] | None = None,
    settable: bool = False,
    bases: list[str] | None = None,
) -> Member:
    return {
        "kind": kind,
        "type": type_,
        "signatures": signatures or [],
        "settable": settable,
        "bases": bases or [],
    }


def clean(text: str) -> str:
    """A pybind signature as Python can read it: no modules, no C++ namespaces, ``...`` for defaults in brackets."""
    text = re.sub(r"<[^<>]*>", "...", text)
    text = re.sub(r"\b(?:\w+_bindings|tensorrt_rtx|tensorrt)\.(?:tensorrt_rtx\.|tensorrt\.)?", "", text)
    text = re.sub(r"\b(?:\w+::)+(\w+)", r"\1", text)
    return re.sub(r"\b(" + "|".join(_RENAMED) + r")\b", lambda found: _RENAMED[found[0]], text)


def documented(doc: str | None, name: str) -> list[str]:
    """The signatures at the head of a docstring that pybind wrote."""
    found = re.findall(rf"^(?:\d+\. )?{re.escape(name)}(\(.*\) -> .*)$", doc or "", re.MULTILINE)
    return [clean(signature.strip()) for signature in found]


def _signatures(thing: Any, name: str) -> list[str]:
    found = documented(getattr(thing, "__doc__", None), name)
    if found:
        return found
    try:
        return [str(inspect.signature(thing))]
    except (TypeError, ValueError):
        return []


def _property_type(static: Any) -> str:
    """What a getter returns: pybind and Cython say it in docstrings, Python in annotations."""
    getter = getattr(static, "fget", None)
    told = getattr(getter, "__annotations__", {}).get("return")
    if isinstance(told, str):
        return told
    for doc in (getattr(getter, "__doc__", None), getattr(static, "__doc__", None)):
        head = (doc or "").strip().partition("\n")[0]
        found = re.search(r"\) -> (.+)$", head) or re.match(r"\w+(?:\.\w+)+: (.+)$", head)
        if found is not None:
            return clean(found[1])
    return ""


def _of_class(owner: type, name: str) -> Member:
    static = inspect.getattr_static(owner, name)
    if inspect.isdatadescriptor(static):
        settable = getattr(static, "fset", None) is not None
        return _member("property", _property_type(static), settable=settable)
    value = getattr(owner, name)
    if isinstance(value, type):
        return _class_member(value)
    if callable(value) and type(value) is not owner:
        return _member("method", signatures=_signatures(value, name))
    return _member("value", type(value).__qualname__)


def _class_member(cls: type) -> Member:
    bases = [base.__qualname__ for base in cls.__mro__ if base is not object]
    made = documented(cls.__init__.__doc__, "__init__")  # type: ignore[misc]  # of the class that is looked at
    if not made and dataclasses.is_dataclass(cls):  # Cython's have no signature
        made = [f"({', '.join(f'{field.name}=...' for field in dataclasses.fields(cls) if field.init)})"]
    with contextlib.suppress(TypeError, ValueError):
        made = made or [str(inspect.signature(cls))]
    return _member("class", cls.__qualname__, made, bases=bases)


def _add_class(cls: type, classes: dict[str, dict[str, Member]]) -> None:
    if cls.__qualname__ in classes:
        return
    held = classes[cls.__qualname__] = {}
    for name in dir(cls):
        if not name.startswith("_") or name in _SPECIAL:
            held[name] = _of_class(cls, name)
            if held[name]["kind"] == "class":
                _add_class(getattr(cls, name), classes)


def _add_module(module: ModuleType, classes: dict[str, dict[str, Member]]) -> dict[str, Member]:
    held: dict[str, Member] = {}
    for name in dir(module):
        value = getattr(module, name)
        if isinstance(value, type):
            held[name] = _class_member(value)
            _add_class(value, classes)
        elif isinstance(value, ModuleType):
            held[name] = _member("module", value.__name__)
        elif callable(value):
            held[name] = _member("method", signatures=_signatures(value, name))
        else:
            held[name] = _member("value", type(value).__qualname__)
    return held


def take_stock(names: list[str]) -> Catalogue:
    """The catalogue of modules, which are imported for it.

    Args:
        names: Such as ``tensorrt_rtx``. Classes of modules below them that were loaded with them are there, too.
    """
    classes: dict[str, dict[str, Member]] = {}
    loaded = [importlib.import_module(name) for name in names]
    modules = {name: _add_module(module, classes) for name, module in zip(names, loaded, strict=True)}
    for name, module in sorted(sys.modules.items()):
        if name.startswith(f"{names[0]}.") and isinstance(module, ModuleType):
            for value in list(vars(module).values()):
                if isinstance(value, type) and (value.__module__ or "").startswith(names[0]):
                    _add_class(value, classes)
    return {"version": str(loaded[0].__version__), "modules": modules, "classes": classes}


def stub_libraries(folder: Path, major: int) -> Path:
    """Compile libraries of TensorRT that hold nothing.

    Args:
        folder: Where they go.
        major: TensorRT's, which is in their names.

    Returns:
        The folder.

    Raises:
        Missing: There is no gcc.
    """
    gcc = shutil.which("gcc")
    if gcc is None:
        raise Missing("gcc, which makes the libraries that the bindings import over")
    source = folder / "stub.c"
    source.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in _FUNCTIONS))
    for library in ("libnvinfer", "libnvonnxparser", "libnvinfer_plugin"):
        name = f"{library}.so.{major}"
        subprocess.run(
            [gcc, "-shared", "-fPIC", f"-Wl,-soname,{name}", "-o", str(folder / name), str(source)],
            check=True,
        )
    return folder


def _asked(names: list[str], env: dict[str, str]) -> Catalogue:
    """The catalogue that another process takes."""
    told = subprocess.run(
        [sys.executable, __file__, *names], env=os.environ | env, capture_output=True, text=True, check=False
    )
    if told.returncode != 0:
        raise RuntimeError(f"{', '.join(names)} cannot be imported:\n{told.stderr}")
    catalogue: Catalogue = json.loads(told.stdout)
    return catalogue


def _as_trt(catalogue: Catalogue) -> Catalogue:
    """With the bindings under the name that adapters use."""
    (members,) = catalogue["modules"].values()
    return {**catalogue, "modules": {"trt": members}}


def classic(version: str, folder: Path) -> Catalogue:
    """The catalogue of ``tensorrt``'s bindings.

    Args:
        version: ``10.3.0`` or ``11.4.0``.
        folder: An empty one, for the stub libraries.

    Raises:
        Missing: The bindings were not fetched, or there is no gcc.
    """
    there = FOLDER / version
    if not (there / "tensorrt_bindings").is_dir():
        raise Missing(
            f"the bindings of TensorRT {version}: `make bindings` fetches them, where there are wheels"
        )
    libraries = stub_libraries(folder, int(version.partition(".")[0]))
    path = os.pathsep.join(filter(None, (str(libraries), os.environ.get("LD_LIBRARY_PATH", ""))))
    return _as_trt(_asked(["tensorrt_bindings"], {"LD_LIBRARY_PATH": path, "PYTHONPATH": str(there)}))


def rtx() -> Catalogue:
    """The catalogue of the installed ``tensorrt_rtx``.

    Raises:
        Missing: It is not installed.
    """
    if importlib.util.find_spec("tensorrt_rtx") is None:
        raise Missing("tensorrt_rtx: pip install 'vsa-rt[tensorrt-rtx]'")
    return _as_trt(_asked(["tensorrt_rtx"], {}))


#: What the CUDA adapter imports. The first one's version and private classes count.
CUDA = ["cuda.core", "cuda.core.utils", "cuda.core.graph", "cuda.bindings", "cuda.bindings.driver", "cuda.bindings.runtime"]  # fmt: skip


def cuda() -> Catalogue:
    """The catalogue of the installed ``cuda.core`` and the modules of ``cuda.bindings`` that adapters use.

    Raises:
        Missing: It is not installed.
    """
    for name in ("cuda.core", "cuda.bindings"):
        try:
            found = importlib.util.find_spec(name)
        except ModuleNotFoundError:
            found = None
        if found is None:
            raise Missing(f"{name}: pip install 'cuda-core>=1.0' 'cuda-bindings>=12.6'")
    return _asked(CUDA, {})


if __name__ == "__main__":
    json.dump(take_stock(sys.argv[1:]), sys.stdout)
