"""Photographs that installed packages ship, for gates where the user names no folder."""

from __future__ import annotations

import shutil
import sys
from importlib import util
from pathlib import Path

from vsa_rt.errors import EnvironmentUnusable

#: Photographs and scans that the export extra's packages ship inside their wheels.
_SHIPPED = {
    "skimage": (
        "data",
        [
            "astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "motorcycle_left.png",
            "motorcycle_right.png", "camera.png", "coins.png", "brick.png", "grass.png", "gravel.png",
            "moon.png", "hubble_deep_field.jpg", "retina.jpg", "ihc.png",
        ],
    ),
    "sklearn": ("datasets/images", ["china.jpg", "flower.jpg"]),
}  # fmt: skip


def shipped_photographs() -> list[Path]:
    """Those photographs, in a fixed order.

    Raises:
        EnvironmentUnusable: Neither package is installed.
    """
    found: list[Path] = []
    for package, (inner, names) in _SHIPPED.items():
        spec = util.find_spec(package)
        if spec is None or spec.origin is None:
            continue
        folder = Path(spec.origin).parent / inner
        found += [folder / name for name in names if (folder / name).is_file()]
    if not found:
        raise EnvironmentUnusable(
            "no photographs to compare on: scikit-image and scikit-learn are absent; "
            "pip install 'vsa-rt[export]', or name a folder with --data"
        )
    return found


def main() -> None:
    """Copy them into a folder: ``python -m vsa_rt.export.photographs FOLDER``."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for photograph in shipped_photographs():
        shutil.copyfile(photograph, folder / photograph.name)


if __name__ == "__main__":
    main()
