FROM python:3.13.9-slim-bookworm AS build
WORKDIR /source
RUN python -m venv /opt/vllm-agent
COPY constraints.txt pyproject.toml README.md LICENSE ./
COPY src src
RUN /opt/vllm-agent/bin/pip install --no-cache-dir --no-compile --constraint constraints.txt .

FROM python:3.13.9-slim-bookworm
LABEL org.opencontainers.image.title="vllm-agent" \
      org.opencontainers.image.description="Prometheus exporter and monitoring agent for vLLM servers" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /opt/vllm-agent /opt/vllm-agent
# A named volume takes over the owner of the folder it first covers.
RUN install --directory --owner=65532 --group=65532 --mode=0750 /var/lib/vllm-agent
ENV PATH=/opt/vllm-agent/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    VLLM_AGENT_STATE_DIR=/var/lib/vllm-agent
USER 65532:65532
VOLUME /var/lib/vllm-agent
EXPOSE 10060
STOPSIGNAL SIGTERM
ENTRYPOINT ["vllm-agent"]
