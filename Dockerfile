# The image of a GPU cluster. It compiles four libraries from source: allow it an hour or two.
#   docker build --tag emu3-megatron .
#   docker run --gpus all --ipc=host --ulimit memlock=-1 -v "$PWD":/work emu3-megatron emu3 train …
FROM nvidia/cuda:13.0.1-cudnn-devel-ubuntu24.04 AS build
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
ARG MAX_JOBS=8
ARG APEX_COMMIT=6424da3b4faa6c8f062da4a48c424fff3f02d42d
ENV TORCH_CUDA_ARCH_LIST=9.0a \
    NVTE_CUDA_ARCHS=90a \
    FLASH_ATTN_CUDA_ARCHS=90 \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_CONSTRAINT=/build/constraints.txt \
    PATH=/opt/emu3/bin:$PATH
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends git make python3.12-dev python3.12-venv \
    && rm -rf /var/lib/apt/lists/* \
    && python3.12 -m venv /opt/emu3
COPY tools/docker-constraints.txt /build/constraints.txt
# What changes least first: a change of ours rebuilds none of these layers.
RUN pip install torch==2.11.0 ninja==1.13.2 packaging==26.3 setuptools==81.0.0 wheel==0.48.0
RUN MAX_JOBS=$MAX_JOBS pip install --no-build-isolation "transformer-engine[pytorch]==2.20.2"
RUN MAX_JOBS=$MAX_JOBS FLASH_ATTENTION_FORCE_BUILD=TRUE \
    pip install --no-build-isolation flash-attn==2.8.3.post2
RUN APEX_CPP_EXT=1 APEX_CUDA_EXT=1 APEX_PARALLEL_BUILD=$MAX_JOBS \
    pip install --no-build-isolation "git+https://github.com/NVIDIA/apex.git@$APEX_COMMIT"
RUN pip install megatron-core==0.19.2 deepspeed==0.19.8
COPY . /build/emu3-megatron
WORKDIR /build/emu3-megatron
# hadolint ignore=DL3013
RUN make csrc && pip install ".[serve,tracking]" && pip install --no-deps "dashscope==2.0.2"

FROM nvidia/cuda:13.0.1-cudnn-runtime-ubuntu24.04
# Triton compiles its launchers with gcc, against Python's headers.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev python3.12 python3.12-dev \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 10001 emu3 \
    && install --directory --owner emu3 /work
COPY --from=build /opt/emu3 /opt/emu3
ENV PATH=/opt/emu3/bin:$PATH
USER 10001
WORKDIR /work
HEALTHCHECK --interval=5m --timeout=2m CMD ["emu3", "check"]
CMD ["emu3", "--help"]
