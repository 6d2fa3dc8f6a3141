# vsa-rt on a Jetson Orin with JetPack 6.1 or 6.2 (Jetson Linux 36.4): Python 3.10, CUDA 12.6, TensorRT 10.3.
#
# Unproven on a GPU: was never built here. The base's tag is in wide use, its content was not looked at from here; what
# this file needs of it is checked at the end of the build. On the board, at the root of the repository:
#
#   docker build -f docker/jetpack6.Dockerfile -t vsa-rt:jetpack6 .
#   docker run --rm --runtime nvidia -v "$PWD:/work" vsa-rt:jetpack6                 # doctor
#   docker run --rm --runtime nvidia -v "$PWD:/work" vsa-rt:jetpack6 run q.bundle photos/

ARG UBUNTU=jammy-20251001
ARG L4T_JETPACK=r36.4.0

FROM ubuntu:${UBUNTU} AS wheel
ARG SETUPTOOLS=80.9.0
ARG WHEEL=0.45.1
# The archive keeps one version of each package: the image's date pins them as far as can be.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /build \
    && /build/bin/pip install --no-cache-dir "setuptools==${SETUPTOOLS}" "wheel==${WHEEL}"
WORKDIR /source
COPY pyproject.toml setup.py README.md LICENSE ./
COPY src src
COPY export export
COPY engines engines
COPY runtime runtime
COPY bench bench
RUN /build/bin/pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir /wheels .

FROM nvcr.io/nvidia/l4t-jetpack:${L4T_JETPACK}
# Of vsa-rt. Its `tensorrt` is not among them: TensorRT is the base's.
ARG EXTRAS=sign
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3-venv \
    && rm -rf /var/lib/apt/lists/* \
    && python3 -m venv --system-site-packages /opt/vsa-rt
COPY docker/jetpack6.constraints.txt /opt/constraints.txt
COPY --from=wheel /wheels /opt/wheels
# ONNX and ONNX Runtime build engines of an exported bundle.
RUN set -- /opt/wheels/vsa_rt-*.whl \
    && /opt/vsa-rt/bin/pip install --no-cache-dir --constraint /opt/constraints.txt "$1[${EXTRAS}]" \
        cuda-bindings cuda-core ml-dtypes onnx onnxruntime protobuf \
    && /opt/vsa-rt/bin/python -c 'import vsa_rt.runtime._resample' \
    && /opt/vsa-rt/bin/python -c 'import importlib.util as u, sys; sys.exit(u.find_spec("tensorrt") is None and "the base has no TensorRT for Python")'
# The GPU's device files belong to group video; where `render` is asked for, too: docker run --group-add.
RUN useradd --create-home --uid 10001 --groups video vsa
ENV PATH=/opt/vsa-rt/bin:$PATH
USER 10001
WORKDIR /work
ENTRYPOINT ["vsa-rt"]
CMD ["doctor"]
