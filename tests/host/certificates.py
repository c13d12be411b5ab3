"""A certificate authority for tests, made by the openssl program."""

from __future__ import annotations

import ssl
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


@dataclass(frozen=True)
class Authority:
    """Certificates and keys in one folder; `other_ca` signed none of them."""

    folder: Path

    @property
    def ca(self) -> Path:
        return self.folder / "ca.pem"

    @property
    def other_ca(self) -> Path:
        return self.folder / "other-ca.pem"

    @property
    def client(self) -> tuple[Path, Path]:
        return self.folder / "client.pem", self.folder / "client.key"

    def server_context(self, *, wants_client: bool = False) -> ssl.SSLContext:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(self.folder / "server.pem", self.folder / "server.key")
        if wants_client:
            context.load_verify_locations(self.ca)
            context.verify_mode = ssl.CERT_REQUIRED
        return context


def make_authority(folder: Path) -> Authority:
    """Make the certificates in `folder`; they are good for two days."""
    for name in ("ca", "other-ca"):
        _openssl(folder, "-x509", *_NEW_KEY, *_files(name), "-subj", f"/CN={name}")
    for name, subject in (("server", "DNS:vllm.test,IP:127.0.0.1"), ("client", "DNS:agent")):
        signing = ("-x509", "-CA", "ca.pem", "-CAkey", "ca.key", "-subj", f"/CN={name}")
        extensions = (
            "-addext",
            f"subjectAltName={subject}",
            "-addext",
            "basicConstraints=CA:FALSE",
        )
        _openssl(folder, *signing, *_NEW_KEY, *_files(name), *extensions)
    return Authority(folder)


def _files(name: str) -> tuple[str, ...]:
    return "-keyout", f"{name}.key", "-out", f"{name}.pem"


def _openssl(folder: Path, *arguments: str) -> None:
    command = ["openssl", "req", *arguments, "-days", "2"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
