"""The one part of the build that pyproject.toml cannot say yet: an optional C extension.

The extension is the exact resize in vector code. Without a compiler it is left out, and Pillow does the same
work. It uses the limited API, so that one wheel serves every Python from 3.10 on.
"""

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "vsa_rt.runtime._resample",
            sources=["runtime/_resample.c"],
            depends=["runtime/_resample_vector.h"],
            define_macros=[("Py_LIMITED_API", "0x030A0000")],
            extra_compile_args=["-O3"],
            py_limited_api=True,
            optional=True,
        )
    ],
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
