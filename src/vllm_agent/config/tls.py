"""The section `tls_config`: how to speak TLS with a server."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field, StrictStr, ValidationInfo, field_validator

from vllm_agent.config.problem import quoted
from vllm_agent.config.url import parse_host
from vllm_agent.config.values import PemFile, Section, fail

if TYPE_CHECKING:
    from pathlib import Path


class TlsConfig(Section):
    """How to speak TLS with a server; the keys and their meaning are Prometheus' `tls_config`."""

    ca_file: PemFile | None = Field(
        None, description="CA certificates to trust instead of the system's, PEM."
    )
    cert_file: PemFile | None = Field(
        None, description="Client certificate, PEM. Needs `key_file`."
    )
    key_file: PemFile | None = Field(
        None, validate_default=True, description="Private key of `cert_file`, PEM."
    )
    server_name: StrictStr | None = Field(
        None, description="Name to expect in the server's certificate instead of the URL's host."
    )
    insecure_skip_verify: bool = Field(
        default=False, strict=True, description="Accept any certificate."
    )

    @field_validator("key_file")
    @classmethod
    def _key_goes_with_certificate(cls, value: Path | None, info: ValidationInfo) -> Path | None:
        # A cert_file that is wrong itself is not in the data: one error is enough.
        if "cert_file" in info.data and (value is None) != (info.data["cert_file"] is None):
            fail("cert_file and key_file go together: write both or neither")
        return value

    @field_validator("server_name")
    @classmethod
    def _is_host(cls, value: str | None) -> str | None:
        if value is None:
            return None
        try:
            return parse_host(value)
        except ValueError as error:
            fail(f"{error}, got {quoted(value)}")
