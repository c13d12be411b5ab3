# The agent without a vLLM: it watches servers, and brings none.
#   docker build --build-arg REVISION="$(git rev-parse HEAD)" --tag vllm-agent:0.1.0 .
FROM python:3.13.14-slim-bookworm AS build
WORKDIR /source
# The first pins what is installed, the second what it is built with.
ENV PIP_CONSTRAINT=/source/constraints.txt \
    PIP_BUILD_CONSTRAINT=/source/constraints.txt \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_ROOT_USER_ACTION=ignore
COPY constraints.txt ./
RUN python -m venv /opt/vllm-agent \
    && /opt/vllm-agent/bin/pip install pip
COPY pyproject.toml README.md LICENSE ./
COPY src src
# What `vllm-agent export-assets` writes.
COPY alerts/*.yml alerts/
COPY dashboards/grafana dashboards/grafana
# pip compiles what it installs: on a root that cannot be written each start would do it again.
RUN /opt/vllm-agent/bin/pip install . \
    && /opt/vllm-agent/bin/pip uninstall --yes pip

FROM python:3.13.14-slim-bookworm
# A named volume takes over the owner of the folder it first covers.
RUN install --directory --owner=65532 --group=65532 --mode=0750 /var/lib/vllm-agent
COPY --from=build /opt/vllm-agent /opt/vllm-agent
ENV PATH=/opt/vllm-agent/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    VLLM_AGENT_STATE_DIR=/var/lib/vllm-agent
# By number, so that Kubernetes can tell that it is not root. Any other works where the volume is its.
USER 65532:65532
VOLUME /var/lib/vllm-agent
EXPOSE 10060
STOPSIGNAL SIGTERM
ENTRYPOINT ["vllm-agent"]
# Last, so that another revision of the same files is built from the cache.
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="vllm-agent" \
      org.opencontainers.image.description="Prometheus exporter and monitoring agent for vLLM servers" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.url="https://github.com/vllm-agent/vllm-agent" \
      org.opencontainers.image.source="https://github.com/vllm-agent/vllm-agent" \
      org.opencontainers.image.documentation="https://github.com/vllm-agent/vllm-agent/tree/main/docs" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION"
