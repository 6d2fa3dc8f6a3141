"""What the driver tells of GPUs, from stub drivers that are compiled here."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from vsa_rt import gpu

GCC = shutil.which("gcc")
needs_gcc = pytest.mark.skipif(GCC is None, reason="gcc is not there: the stub drivers are compiled with it")

#: Signatures of cuda.h, CUDA 12; attributes 75 and 76 are the capability's two numbers, 18 is INTEGRATED.
STUB = """
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
static const char *names[] = {GPU_NAMES};
static const int major[] = {GPU_MAJORS}, minor[] = {GPU_MINORS}, integrated[] = {GPU_INTEGRATED};
int cuDriverGetVersion(int *version) { *version = VERSION; return VERSION_CODE; }
static int ready = 0;
int cuInit(unsigned flags) {
  INIT_BODY
  if (!flags && !INIT_CODE) ready = 1;
  return flags ? 1 : INIT_CODE;
}
int cuDeviceGetCount(int *count) { *count = COUNT; return ready ? COUNT_CODE : 3; }
#ifdef OWN_NAME
int cuGetErrorName(int code, const char **name) { *name = OWN_NAME; return 0; }
#endif
int cuDeviceGet(int *device, int ordinal) { *device = ordinal + 40; return 0; }
int cuDeviceGetName(char *name, int size, int device) { strncpy(name, names[device - 40], size); return 0; }
#ifndef WITHOUT_MEMORY
int cuDeviceTotalMem_v2(size_t *bytes, int device) { *bytes = (size_t)(device - 39) << 33; return MEMORY_CODE; }
#endif
int cuDeviceGetAttribute(int *value, int attribute, int device) {
  int i = device - 40;
  if (attribute == 75) *value = major[i];
  else if (attribute == 76) *value = minor[i];
  else if (attribute == 18) *value = integrated[i];
  else return 1;
  return 0;
}
"""
#: An Orin of CUDA 12.6 (its driver says 12060), unless a test says otherwise.
ORIN = {
    "GPU_NAMES": '"Orin"',
    "GPU_MAJORS": "8",
    "GPU_MINORS": "7",
    "GPU_INTEGRATED": "1",
    "COUNT": "1",
    "COUNT_CODE": "0",
    "INIT_CODE": "0",
    "INIT_BODY": "",
    "MEMORY_CODE": "0",
    "VERSION": "12060",
    "VERSION_CODE": "0",
}
Driver = Callable[..., str]


@pytest.fixture
def driver(tmp_path: Path) -> Driver:
    """Compiles a stub driver and gives its path."""

    def make(**words: str) -> str:
        source, library = tmp_path / "stub.c", tmp_path / "libcuda.so.1"
        source.write_text(STUB, encoding="utf-8")
        defines = [f"-D{name}={value}" for name, value in (ORIN | words).items()]
        command = [str(GCC), "-shared", "-fPIC", *defines, str(source), "-o", str(library)]
        subprocess.run(command, check=True, capture_output=True)
        return str(library)

    return make


def test_without_a_driver_the_reason_says_so(tmp_path: Path) -> None:
    path = str(tmp_path / "libcuda.so.1")
    assert gpu.look(path) == gpu.Gpus(reason=f"no NVIDIA driver is installed: {path} is not there")


def test_a_library_that_does_not_load_is_not_called_absent(tmp_path: Path) -> None:
    path = tmp_path / "libcuda.so.1"
    path.write_text("no library", encoding="utf-8")
    found = gpu.look(str(path))
    assert found.reason.startswith("the NVIDIA driver's library does not load: ")
    assert (found.devices, found.driver) == ([], "")


@needs_gcc
def test_two_gpus_are_told_in_the_drivers_order(driver: Driver) -> None:
    path = driver(
        COUNT="2",
        GPU_NAMES='"Orin","NVIDIA Thor"',
        GPU_MAJORS="8,11",
        GPU_MINORS="7,0",
        GPU_INTEGRATED="1,0",
        VERSION="13000",
    )
    assert gpu.look(path) == gpu.Gpus(
        [gpu.Gpu("Orin", "sm_87", 8 << 30, True), gpu.Gpu("NVIDIA Thor", "sm_110", 16 << 30, False)], "13.0"
    )


@needs_gcc
@pytest.mark.parametrize(
    ("code", "said"),
    [
        (34, "CUDA_ERROR_STUB_LIBRARY: libcuda is a stub of the toolkit"),
        (100, "CUDA_ERROR_NO_DEVICE: the driver sees no GPU: in a container, pass it in"),
        (802, "CUDA_ERROR_SYSTEM_NOT_READY: "),
        (
            803,
            "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH: kernel module and libcuda are of different versions: reboot",
        ),
        (804, "CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE: "),
        (999, "CUDA_ERROR_UNKNOWN: "),
        (304, "CUDA_ERROR_OPERATING_SYSTEM: "),
        (777, "an error of CUDA (777)"),
    ],
)
def test_an_error_of_the_start_is_told_by_its_name_with_the_drivers_version(
    driver: Driver, code: int, said: str
) -> None:
    found = gpu.look(driver(INIT_CODE=str(code)))
    assert found.reason.startswith(f"cuInit: {said}")
    assert (found.devices, found.driver) == ([], "12.6")


@needs_gcc
def test_a_driver_that_counts_no_gpu_has_a_reason(driver: Driver) -> None:
    found = gpu.look(driver(COUNT="0"))
    assert found.devices == []
    assert found.reason.startswith("the driver sees no GPU: in a container, pass it in")


@needs_gcc
def test_a_library_that_lacks_a_function_is_called_too_old_and_the_function_named(driver: Driver) -> None:
    found = gpu.look(driver(WITHOUT_MEMORY=""))
    assert found.devices == []
    assert found.reason == "the NVIDIA driver is too old: its library lacks cuDeviceTotalMem_v2"


@needs_gcc
@pytest.mark.parametrize(
    ("word", "function"),
    [
        ("VERSION_CODE", "cuDriverGetVersion"),
        ("COUNT_CODE", "cuDeviceGetCount"),
        ("MEMORY_CODE", "cuDeviceTotalMem_v2"),
    ],
)
def test_whichever_call_fails_is_named_and_no_half_read_gpu_is_given(
    driver: Driver, word: str, function: str
) -> None:
    found = gpu.look(driver(**{word: "46"}))
    assert found.devices == []
    assert found.reason.startswith(f"{function}: CUDA_ERROR_DEVICE_UNAVAILABLE")


@needs_gcc
def test_an_error_that_is_not_listed_has_the_drivers_own_name(driver: Driver) -> None:
    found = gpu.look(driver(INIT_CODE="321", OWN_NAME='"CUDA_ERROR_MADE_UP"'))
    assert found.reason == "cuInit: CUDA_ERROR_MADE_UP (321)"


def test_the_names_of_errors_are_those_of_cuda() -> None:
    bindings = pytest.importorskip("cuda.bindings.driver", reason="it has CUDA's names", exc_type=ImportError)
    assert {code: bindings.CUresult(code).name for code in gpu._RESULTS} == {
        code: name for code, (name, _) in gpu._RESULTS.items()
    }


# Asked in a process of its own


def is_initialised(path: str) -> bool:
    """Whether ``cuInit`` was called in this process: then CUDA is lost to those that are forked from it."""
    return int(ctypes.CDLL(path).cuDeviceGetCount(ctypes.byref(ctypes.c_int()))) != 3


@needs_gcc
def test_asking_leaves_this_process_as_it_was(driver: Driver) -> None:
    path = driver()
    found = gpu.ask(path)
    assert found == gpu.Gpus([gpu.Gpu("Orin", "sm_87", 8 << 30, True)], "12.6")
    assert not is_initialised(path)
    assert gpu.look(path) == found
    assert is_initialised(path), "the stub tells the difference"


@needs_gcc
def test_what_fails_there_is_told_here(driver: Driver) -> None:
    found = gpu.ask(driver(INIT_CODE="803"))
    assert found.driver == "12.6"
    assert found.reason.startswith("cuInit: CUDA_ERROR_SYSTEM_DRIVER_MISMATCH: ")


def no_process(*unused: object, **words: object) -> None:
    raise AssertionError("a process is started")


def test_without_a_driver_no_process_is_started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(subprocess, "run", no_process)
    path = str(tmp_path / "libcuda.so.1")
    assert gpu.ask(path).reason == f"no NVIDIA driver is installed: {path} is not there"


@needs_gcc
def test_a_process_that_uses_cuda_already_asks_itself(
    monkeypatch: pytest.MonkeyPatch, driver: Driver
) -> None:
    path = driver()
    assert ctypes.CDLL(path).cuInit(0) == 0
    monkeypatch.setattr(subprocess, "run", no_process)
    assert [found.capability for found in gpu.ask(path).devices] == ["sm_87"]


@needs_gcc
@pytest.mark.parametrize("interpreter", ["", shutil.which("true"), "/no/such/python"])
def test_a_program_that_is_no_interpreter_asks_itself(
    monkeypatch: pytest.MonkeyPatch, driver: Driver, interpreter: str
) -> None:
    monkeypatch.setattr(sys, "executable", interpreter)
    assert [found.capability for found in gpu.ask(driver()).devices] == ["sm_87"]


@needs_gcc
def test_a_driver_that_crashes_does_not_take_this_process_with_it(driver: Driver) -> None:
    found = gpu.ask(driver(INIT_BODY="abort();"))
    assert found == gpu.Gpus(reason="the NVIDIA driver's library ended the process that asked it: SIGABRT")


@needs_gcc
def test_a_driver_that_hangs_is_given_up(driver: Driver) -> None:
    found = gpu.ask(driver(INIT_BODY="pause();"), timeout=0.5)
    assert found == gpu.Gpus(reason="the NVIDIA driver did not answer within 0.5 s")
