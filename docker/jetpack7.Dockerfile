# vsa-rt on a Jetson Thor with JetPack 7.0 or 7.1 (Jetson Linux 38): Python 3.12, CUDA 13.0, TensorRT 10.13.
#
# Unproven on a GPU: was never built here. There is no l4t-jetpack image of JetPack 7: its boards take the images and the
# Debian packages of Arm servers (SBSA). Both versions below are in use on Thor; neither was looked at from here, and what
# this file needs of them is checked at the end of the build. On the board, at the root of the repository:
#
#   docker build -f docker/jetpack7.Dockerfile -t vsa-rt:jetpack7 .
#   docker run --rm --runtime nvidia -v "$PWD:/work" vsa-rt:jetpack7                 # doctor
#
# JetPack 7.2 (Jetson Linux 39, Orin too) has CUDA 13.2 and TensorRT 10.16.2:
#
#   docker build -f docker/jetpack7.Dockerfile --build-arg CUDA=13.2.1-runtime-ubuntu24.04 \
#       --build-arg TENSORRT=10.16.2.10-1+cuda13.2 -t vsa-rt:jetpack7.2 .

ARG UBUNTU=noble-20251001
ARG CUDA=13.0.2-runtime-ubuntu24.04

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

FROM nvcr.io/nvidia/cuda:${CUDA}
ARG TENSORRT=10.13.3.9-1+cuda13.0
# Of vsa-rt. Its `tensorrt` is not among them: TensorRT comes as Debian packages, of NVIDIA's archive that the base names.
ARG EXTRAS=sign
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3-venv \
        "libnvinfer10=${TENSORRT}" "libnvinfer-plugin10=${TENSORRT}" "libnvonnxparsers10=${TENSORRT}" \
        "python3-libnvinfer=${TENSORRT}" \
    && rm -rf /var/lib/apt/lists/* \
    && python3 -m venv --system-site-packages /opt/vsa-rt
COPY constraints.txt /opt/constraints.txt
COPY --from=wheel /wheels /opt/wheels
# ONNX and ONNX Runtime build engines of an exported bundle.
RUN set -- /opt/wheels/vsa_rt-*.whl \
    && /opt/vsa-rt/bin/pip install --no-cache-dir --constraint /opt/constraints.txt "$1[${EXTRAS}]" \
        cuda-bindings cuda-core ml-dtypes onnx onnxruntime protobuf \
    && /opt/vsa-rt/bin/python -c 'import vsa_rt.runtime._resample' \
    && /opt/vsa-rt/bin/python -c 'import importlib.util as u, sys; sys.exit(u.find_spec("tensorrt") is None and "no TensorRT for Python")'
# The GPU's device files belong to group video; where `render` is asked for, too: docker run --group-add.
RUN useradd --create-home --uid 10001 --groups video vsa
ENV PATH=/opt/vsa-rt/bin:$PATH
USER 10001
WORKDIR /work
ENTRYPOINT ["vsa-rt"]
CMD ["doctor"]
