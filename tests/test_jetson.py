"""What a Jetson tells of itself, from made-up trees."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from vsa_rt.jetson import Clock, find_jetson, is_jetson

Files = dict[str, str]
CPU, GPU = "sys/devices/system/cpu/cpufreq", "sys/class/devfreq"
RELEASE = "# R{}, REVISION: {}, GCID: 1, BOARD: generic, EABI: aarch64, DATE: Thu Sep  5 00:00:00 UTC 2024\n"
TOOL = "usr/sbin/nvpmodel"


def clock(folder: str, prefix: str, now: int, least: int, most: int) -> Files:
    return {
        f"{folder}/{prefix}{which}_freq": f"{value}\n"
        for which, value in {"cur": now, "min": least, "max": most}.items()
    }


def package(name: str, version: str, status: str = "install ok installed") -> str:
    """A paragraph of ``/var/lib/dpkg/status``; lines that begin with a blank continue a field."""
    return (
        f"Package: {name}\nStatus: {status}\nPriority: standard\nArchitecture: arm64\nVersion: {version}\n"
        f"Description: made up\n Version: 0 of a line that only looks like a field\n"
    )


#: JetPack 6.1 on an Orin Nano: Jetson Linux 36.4.0, TensorRT 10.3.
ORIN_NANO = {
    "proc/device-tree/model": "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit\0",
    "proc/device-tree/compatible": "nvidia,p3768-0000+p3767-0005\0nvidia,p3767-0005\0nvidia,tegra234\0",
    "etc/nv_tegra_release": RELEASE.format("36 (release)", "4.0") + "# KERNEL_VARIANT: oot\n",
    "etc/nvpmodel.conf": "< PARAM TYPE=FILE NAME=CPU_ONLINE >\n< POWER_MODEL ID=0 NAME=15W >\nCPU_ONLINE CORE_0 1\n"
    "< POWER_MODEL ID=1 NAME=7W >\n# < POWER_MODEL ID=9 NAME=COMMENT >\n< PM_CONFIG DEFAULT=0 >\n",
    "var/lib/dpkg/status": "\n".join(
        [
            package("nvidia-jetpack-runtime", "6.1+b123"),
            package("nvidia-jetpack", "6.1+b123"),
            package("python3-libnvinfer", "10.3.0.30-1+cuda12.5"),
        ]
    ),
    TOOL: '#!/bin/sh\n[ "$1" = -q ] && printf "NV Power Mode: 15W\\n0\\n"\n',
    **clock(f"{CPU}/policy0", "scaling_", 1510400, 1510400, 1510400),
    **clock(f"{CPU}/policy4", "scaling_", 729600, 115200, 1510400),
    **clock(f"{GPU}/17000000.gpu", "", 306000000, 306000000, 624750000),
    **clock(f"{GPU}/15480000.nvdec", "", 1, 1, 2),
}
#: JetPack 7.0 on a Thor: Jetson Linux 38.2.0; the GPU's parts have clocks of their own.
THOR = {
    "proc/device-tree/model": "NVIDIA Jetson AGX Thor Developer Kit\0",
    "etc/nv_tegra_release": RELEASE.format("38 (release)", "2.0"),
    "etc/nvpmodel.conf": "< POWER_MODEL ID=0 NAME=MAXN >\n< POWER_MODEL ID=1 NAME=120W >\n",
    "var/lib/dpkg/status": package("nvidia-jetpack", "7.0-b128"),
    # Without rights it complains first.
    TOOL: '#!/bin/sh\necho "NVPM WARN: some parameter is not readable" >&2\nprintf "NV Power Mode: MAXN\\n0\\n"\nexit 255\n',
    **clock(f"{CPU}/policy0", "scaling_", 2601000, 2601000, 2601000),
    **clock(f"{GPU}/gpu-gpc-0", "", 1575000000, 1575000000, 1575000000),
    **clock(f"{GPU}/gpu-nvd-0", "", 1692000000, 1692000000, 1692000000),
}
PC = {
    "var/lib/dpkg/status": package("nvidia-jetpack", "6.1+b123"),
    **clock(f"{CPU}/policy0", "scaling_", 800000, 800000, 3000000),
}


@pytest.fixture
def tree(tmp_path: Path) -> Callable[[Files], Path]:
    """Writes files below an empty root and gives it."""

    def make(files: Files) -> Path:
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            if name == TOOL:
                path.chmod(0o755)
        return tmp_path

    return make


Tree = Callable[[Files], Path]


def test_an_orin_nano_with_jetpack_6_tells_everything(tree: Tree) -> None:
    found = find_jetson(tree(ORIN_NANO))
    assert found is not None
    assert found.board == "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit"
    assert (found.l4t, found.jetpack, found.tensorrt) == ("36.4.0", "6.1+b123", "10.3.0.30-1+cuda12.5")
    assert (found.power_mode, found.power_modes) == ("15W", {"15W": 0, "7W": 1})
    assert found.clocks == [
        Clock("cpu0", 1510.4, 1510.4, 1510.4, True),
        Clock("cpu4", 729.6, 115.2, 1510.4, False),
        Clock("17000000.gpu", 306.0, 306.0, 624.8, False),
    ]
    assert found.pinned is False
    assert found.reasons == {}


def test_a_thor_with_jetpack_7_tells_everything_but_what_is_not_installed(tree: Tree) -> None:
    found = find_jetson(tree(THOR))
    assert found is not None
    assert (found.board, found.l4t) == ("NVIDIA Jetson AGX Thor Developer Kit", "38.2.0")
    assert (found.jetpack, found.power_mode) == ("7.0-b128", "MAXN")
    assert [c.name for c in found.clocks] == ["cpu0", "gpu-gpc-0", "gpu-nvd-0"]
    assert found.pinned is True
    assert found.tensorrt is None
    assert found.reasons == {"tensorrt": "the package python3-libnvinfer is not installed"}


def test_a_plain_pc_is_no_jetson_whatever_packages_it_has(tree: Tree) -> None:
    root = tree(PC)
    assert not is_jetson(root)
    assert find_jetson(root) is None


@pytest.mark.parametrize(
    "file", ["proc/device-tree/model", "proc/device-tree/compatible", "etc/nv_tegra_release"]
)
def test_any_of_three_files_makes_a_jetson(tree: Tree, file: str) -> None:
    assert is_jetson(tree({file: ORIN_NANO[file]}))


def test_another_board_with_a_device_tree_is_no_jetson(tree: Tree) -> None:
    board = {
        "proc/device-tree/model": "Raspberry Pi 5 Model B Rev 1.0\0",
        "proc/device-tree/compatible": "raspberrypi,5-model-b\0brcm,bcm2712\0",
    }
    assert find_jetson(tree(board)) is None


def test_what_cannot_be_read_is_none_and_has_its_reason(tree: Tree) -> None:
    """A container on a Jetson has hardly more than the device tree."""
    found = find_jetson(tree({"proc/device-tree/compatible": ORIN_NANO["proc/device-tree/compatible"]}))
    assert found is not None
    told = (found.board, found.l4t, found.jetpack, found.tensorrt, found.power_mode, found.pinned)
    assert told == (None,) * 6
    assert (found.power_modes, found.clocks) == ({}, [])
    assert set(found.reasons) == {"board", "l4t", "jetpack", "tensorrt", "power_mode", "clocks"}
    assert found.reasons["jetpack"] == "/var/lib/dpkg/status cannot be read"
    assert found.reasons["power_mode"].startswith("nvpmodel is not there")


def test_a_package_that_was_removed_is_not_installed(tree: Tree) -> None:
    removed = package("nvidia-jetpack", "6.1+b123", "deinstall ok config-files")
    found = find_jetson(tree(ORIN_NANO | {"var/lib/dpkg/status": removed}))
    assert found is not None
    assert found.jetpack is None
    assert found.reasons["jetpack"] == "the package nvidia-jetpack is not installed"


def test_a_tool_that_does_not_answer_is_given_up(tree: Tree) -> None:
    root = tree(ORIN_NANO | {TOOL: "#!/bin/sh\nexec sleep 60\n"})
    found = find_jetson(root, timeout=0.2)
    assert found is not None
    assert found.power_mode is None
    assert found.reasons["power_mode"] == "nvpmodel -q did not answer within 0.2 s"


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("#!/bin/sh\necho NVPM ERROR: no config >&2\nexit 1\n", "names no mode: NVPM ERROR: no config"),
        ("#!/bin/sh\n", "names no mode: it printed nothing"),
        ("#!/no/such/shell\n", "cannot be started: No such file"),
    ],
)
def test_a_tool_that_fails_is_quoted(tree: Tree, script: str, reason: str) -> None:
    found = find_jetson(tree(ORIN_NANO | {TOOL: script}))
    assert found is not None
    assert found.power_mode is None
    assert reason in found.reasons["power_mode"]


def test_a_clock_without_limits_does_not_count_as_pinned(tree: Tree) -> None:
    files = dict(THOR)
    del files[f"{GPU}/gpu-gpc-0/min_freq"]
    found = find_jetson(tree(files))
    assert found is not None
    [gpu] = [c for c in found.clocks if c.name == "gpu-gpc-0"]
    assert (gpu.min_mhz, gpu.max_mhz, gpu.pinned) == (None, 1575.0, None)
    assert found.pinned is None


def test_a_file_without_a_number_is_no_clock(tree: Tree) -> None:
    """A processor that is off tells ``<unknown>``."""
    found = find_jetson(tree(ORIN_NANO | {f"{CPU}/policy4/scaling_cur_freq": "<unknown>\n"}))
    assert found is not None
    assert [c.current_mhz for c in found.clocks] == [1510.4, None, 306.0]
