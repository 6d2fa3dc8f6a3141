"""The native kernels of ``vsa_rt.runtime.resample``, which checks everything before it passes addresses."""

def plan(in_size: int, out_size: int, offset: int, count: int, cubic: bool, /) -> bytes:
    """Coefficients of one axis, for ``count`` outputs from ``offset`` on."""

def resize(
    source: int,
    row_stride: int,
    pixel_stride: int,
    height: int,
    width: int,
    jobs: tuple[tuple[bytes, bytes, int, bool], ...],
    kernel: str = "",
    /,
) -> None:
    """Run every job (plan of x, plan of y, output address, vertical first) over one image."""

def kernels() -> tuple[str, ...]:
    """Names of the kernels that this processor runs, fastest first."""
