"""Certificates for the loopback interface, made by the openssl command."""

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

_ADDRESSES = "subjectAltName = IP:127.0.0.1, IP:::1, DNS:localhost"


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate and its private key."""

    certificate: Path
    key: Path


class Authority:
    """Signs certificates, and keeps all of its files in ``folder``. Skips the test where there is no openssl."""

    def __init__(self, folder: Path, name: str) -> None:
        if shutil.which("openssl") is None:
            pytest.skip("makes certificates with the openssl command, which is not installed")
        self._folder = folder
        self._name = name
        self.certificate = folder / f"{name}.pem"
        self._key = folder / f"{name}.key"
        _openssl("req", "-x509", "-days", "2", "-out", self.certificate, *_new_key(self._key), "-subj", f"/CN={name}")

    def sign(self, name: str) -> Pair:
        """A new certificate, good for a server on the loopback interface and for a client."""
        stem = f"{self._name}-{name}"
        pair = Pair(self._folder / f"{stem}.pem", self._folder / f"{stem}.key")
        request, extensions = self._folder / f"{stem}.csr", self._folder / f"{stem}.txt"
        extensions.write_text(_ADDRESSES, encoding="ascii")
        _openssl("req", "-out", request, *_new_key(pair.key), "-subj", f"/CN={name}")
        signed_by = ("-CA", self.certificate, "-CAkey", self._key, "-CAcreateserial", "-extfile", extensions)
        _openssl("x509", "-req", "-days", "2", "-in", request, "-out", pair.certificate, *signed_by)
        return pair


def encrypt(key: Path, path: Path) -> None:
    """Write ``key`` to ``path``, so that it takes a password to read it."""
    _openssl("pkey", "-in", key, "-aes256", "-passout", "pass:secret", "-out", path)


def _new_key(path: Path) -> tuple[str | Path, ...]:
    return ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", path)


def _openssl(*arguments: str | Path) -> None:
    command = ["openssl", *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
