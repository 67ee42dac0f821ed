# syntax=docker/dockerfile:1
# bdbnet as a container: `bdbnet` is what it runs, data come in and results go out at /files.
#   docker build -t bdbnet .                                       PyTorch as pip has it: NVIDIA GPUs (docker run --gpus all ...), and CPUs
#   docker build -t bdbnet:cpu --build-arg DEVICE=cpu --build-arg TORCH_INDEX=<URL> .
#                                                                  CPUs alone, about 5 GB smaller; URL: the index of PyTorch's CPU wheels,
#                                                                  which its page "Get started" names
#   docker run --rm -u $(id -u):$(id -g) -v "$PWD:/files" bdbnet evaluate checkpoint=last.ckpt dataset=market1501
ARG PYTHON=3.12

FROM python:${PYTHON}-slim AS build
ARG DEVICE=cuda
ARG TORCH_INDEX
# What beside the core: see [project.optional-dependencies] in pyproject.toml.
ARG EXTRAS=export,faiss,milvus,serve,timm
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
WORKDIR /src
RUN python -m venv /opt/bdbnet
ENV PATH=/opt/bdbnet/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
# PyTorch first: a layer of gigabytes that a change of bdbnet does not build anew.
COPY constraints.txt ./
RUN case "$DEVICE" in \
      cuda) index="" ;; \
      cpu) index="--index-url=${TORCH_INDEX:?add --build-arg TORCH_INDEX=<index of the CPU wheels of PyTorch>}" ;; \
      *) echo "DEVICE=$DEVICE: choose cuda or cpu" >&2; exit 1 ;; \
    esac; \
    grep -E "^torch(vision)?==" constraints.txt | xargs pip install ${index:+"$index"}
COPY pyproject.toml README.md LICENSE ./
COPY src src
COPY conf conf
COPY experiments/paper experiments/paper
COPY experiments/budgets experiments/budgets
COPY experiments/claims experiments/claims
RUN pip install -c constraints.txt ".[${EXTRAS}]"

FROM python:${PYTHON}-slim
COPY --from=build /opt/bdbnet /opt/bdbnet
ENV PATH=/opt/bdbnet/bin:$PATH \
    BDBNET_CACHE=/files/.cache/bdbnet \
    MPLCONFIGDIR=/files/.cache/matplotlib \
    PYTHONUNBUFFERED=1
RUN useradd --create-home --uid 1000 bdbnet && mkdir /files && chown bdbnet /files
USER 1000
WORKDIR /files
EXPOSE 8765
ENTRYPOINT ["bdbnet"]
CMD ["--help"]
