# vsa-rt on a datacenter GPU (x86-64, or Arm servers): Python 3.12, CUDA 13.0, TensorRT 10.13. The driver: 580 or later.
#
# Unproven on a GPU: was never built here. The base's tag is in wide use, its content was not looked at from here; what
# this file needs of it is checked at the end of the build. At the root of the repository:
#
#   docker build -f docker/datacenter.Dockerfile -t vsa-rt:datacenter .
#   docker run --rm --gpus all -v "$PWD:/work" vsa-rt:datacenter                     # doctor
#   docker run --rm --gpus all -v "$PWD:/work" vsa-rt:datacenter run q.bundle photos/

ARG UBUNTU=noble-20251001
ARG TENSORRT_IMAGE=25.10-py3

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

FROM nvcr.io/nvidia/tensorrt:${TENSORRT_IMAGE}
# Of vsa-rt. Its `tensorrt` is not among them: TensorRT is the base's. `export,sign` builds from recipes, with PyTorch.
ARG EXTRAS=sign
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3-venv \
    && rm -rf /var/lib/apt/lists/* \
    && python3 -m venv --system-site-packages /opt/vsa-rt
COPY constraints.txt /opt/constraints.txt
COPY --from=wheel /wheels /opt/wheels
# NVIDIA's images may name constraints of their own, which are not for this environment.
# ONNX and ONNX Runtime build engines of an exported bundle.
RUN unset PIP_CONSTRAINT \
    && set -- /opt/wheels/vsa_rt-*.whl \
    && /opt/vsa-rt/bin/pip install --no-cache-dir --constraint /opt/constraints.txt "$1[${EXTRAS}]" \
        cuda-bindings cuda-core ml-dtypes onnx onnxruntime protobuf \
    && /opt/vsa-rt/bin/python -c 'import vsa_rt.runtime._resample' \
    && /opt/vsa-rt/bin/python -c 'import importlib.util as u, sys; sys.exit(u.find_spec("tensorrt") is None and "the base has no TensorRT for Python")'
RUN useradd --create-home --uid 10001 vsa
ENV PATH=/opt/vsa-rt/bin:$PATH
USER 10001
WORKDIR /work
# Not the base's own entry point, whose banner would stand before every JSON document.
ENTRYPOINT ["vsa-rt"]
CMD ["doctor"]
