"""TLS, on the transport that has it: who is served, who is not, and what ends the start."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpcclient
from tests.e2e.certificates import Authority, Pair, encrypt
from tests.e2e.server_process import LIMIT_S, ServerProcess, echo_config, write_model
from tests.e2e.tensors import infer_inputs, unique_rows
from tests.e2e.transports import refused_start
from tritonclient.utils import InferenceServerException

pytestmark = pytest.mark.transports


@dataclass(frozen=True, slots=True)
class Certificates:
    """An authority's pairs for a server and a client, and one for a client that another authority signed."""

    authority: Path
    server: Pair
    client: Pair
    stranger: Pair


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    folder = tmp_path_factory.mktemp("certificates")
    ours = Authority(folder, "ours")
    stranger = Authority(folder, "theirs").sign("client")
    return Certificates(ours.certificate, ours.sign("server"), ours.sign("client"), stranger)


@pytest.fixture(scope="module", params=["TLS", "mTLS"])
def secured(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, certificates: Certificates
) -> Iterator[tuple[str, ServerProcess]]:
    """A server with TLS, or with certificates on both sides, and which of the two."""
    folder = tmp_path_factory.mktemp("models")
    write_model(folder, "echo", echo_config())
    with ServerProcess(folder, options=secured_by(certificates, mutual=request.param == "mTLS")) as server:
        yield request.param, server


def secured_by(certificates: Certificates, *, mutual: bool) -> list[str]:
    options = ["--tls-certificate", str(certificates.server.certificate), "--tls-key", str(certificates.server.key)]
    return [*options, "--tls-client-ca", str(certificates.authority)] if mutual else options


def secure_client(server: ServerProcess, authority: Path, pair: Pair | None = None) -> Any:
    return grpcclient.InferenceServerClient(
        server.grpc_address,
        ssl=True,
        root_certificates=str(authority),
        certificate_chain=None if pair is None else str(pair.certificate),
        private_key=None if pair is None else str(pair.key),
    )


def assert_infers(client: Any) -> None:
    rows = unique_rows(3, start=10)
    result = client.infer("echo", infer_inputs({"INPUT0": rows}), client_timeout=LIMIT_S)
    assert np.array_equal(result.as_numpy("OUTPUT0"), rows)


def assert_gets_no_connection(client: Any) -> None:
    with pytest.raises(InferenceServerException) as caught:
        client.infer("echo", infer_inputs({"INPUT0": unique_rows(1, start=0)}), client_timeout=LIMIT_S)
    assert caught.value.status() == "StatusCode.UNAVAILABLE"


def test_a_client_with_a_certificate_is_served_over_tls(
    secured: tuple[str, ServerProcess], certificates: Certificates
) -> None:
    _, server = secured
    with secure_client(server, certificates.authority, certificates.client) as client:
        assert client.is_server_ready()
        assert_infers(client)


def test_a_client_without_a_certificate_is_served_unless_one_is_asked_for(
    secured: tuple[str, ServerProcess], certificates: Certificates
) -> None:
    kind, server = secured
    with secure_client(server, certificates.authority) as client:
        if kind == "TLS":
            assert_infers(client)
        else:
            assert_gets_no_connection(client)


def test_a_client_with_a_strangers_certificate_is_served_unless_one_of_ours_is_asked_for(
    secured: tuple[str, ServerProcess], certificates: Certificates
) -> None:
    kind, server = secured
    with secure_client(server, certificates.authority, certificates.stranger) as client:
        if kind == "TLS":
            assert_infers(client)
        else:
            assert_gets_no_connection(client)


def test_a_client_that_speaks_in_the_clear_is_refused_by_a_server_with_tls(
    secured: tuple[str, ServerProcess], certificates: Certificates
) -> None:
    _, server = secured
    with grpcclient.InferenceServerClient(server.grpc_address) as client:
        assert_gets_no_connection(client)
    with secure_client(server, certificates.authority, certificates.client) as client:
        assert_infers(client)


def test_a_client_that_trusts_another_authority_does_not_take_the_server(
    secured: tuple[str, ServerProcess], certificates: Certificates
) -> None:
    _, server = secured
    with secure_client(server, certificates.stranger.certificate, certificates.client) as client:
        assert_gets_no_connection(client)


@pytest.mark.parametrize("missing", ["--tls-certificate", "--tls-key", "--tls-client-ca"])
def test_a_file_of_the_certificates_that_is_not_there_ends_the_start_and_is_named(
    tmp_path: Path, certificates: Certificates, missing: str
) -> None:
    absent = tmp_path / "absent.pem"
    options = secured_by(certificates, mutual=True)
    options[options.index(missing) + 1] = str(absent)
    result = refused_start(tmp_path, *options)
    assert result.returncode == 1
    assert str(absent) in result.stderr
    assert "No such file" in result.stderr


@pytest.mark.parametrize("spoilt", ["--tls-certificate", "--tls-key"])
def test_a_certificate_or_key_that_is_none_ends_the_start_and_the_port_is_not_blamed(
    tmp_path: Path, certificates: Certificates, spoilt: str
) -> None:
    nonsense = tmp_path / "nonsense.pem"
    nonsense.write_text("nonsense", encoding="ascii")
    options = secured_by(certificates, mutual=False)
    options[options.index(spoilt) + 1] = str(nonsense)
    result = refused_start(tmp_path, *options)
    assert result.returncode == 1
    assert "is the port taken" not in result.stderr
    assert "certificate" in result.stderr


def test_authorities_that_are_none_end_the_start(tmp_path: Path, certificates: Certificates) -> None:
    nonsense = tmp_path / "nonsense.pem"
    nonsense.write_text("nonsense", encoding="ascii")
    options = secured_by(certificates, mutual=True)
    options[options.index("--tls-client-ca") + 1] = str(nonsense)
    result = refused_start(tmp_path, *options)
    assert result.returncode == 1
    assert "is the port taken" not in result.stderr


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (("--tls-certificate",), "--tls-key"),
        (("--tls-key",), "--tls-certificate"),
        (("--tls-client-ca",), "--tls-certificate"),
        (("--tls-certificate", "--tls-client-ca"), "--tls-key"),
    ],
)
def test_half_of_what_tls_needs_is_refused_with_the_other_half_named(
    tmp_path: Path, given: Sequence[str], named: str
) -> None:
    file = tmp_path / "some.pem"
    result = refused_start(tmp_path, *itertools.chain.from_iterable((flag, str(file)) for flag in given))
    assert result.returncode == 2
    assert named in result.stderr
    assert given[0] in result.stderr


def test_auto_on_a_trusted_network_serves_with_tls_on_grpcio_and_says_why(
    tmp_path: Path, certificates: Certificates
) -> None:
    write_model(tmp_path, "echo", echo_config())
    options = ("--transport", "auto", "--trusted-network", "true", *secured_by(certificates, mutual=False))
    with ServerProcess(tmp_path, options=options) as server:
        assert "transport: grpcio, since" in server.log
        assert "--tls-certificate" in server.log
        with secure_client(server, certificates.authority) as client:
            assert_infers(client)


def test_a_key_that_needs_a_password_ends_the_start_and_nobody_is_asked(
    tmp_path: Path, certificates: Certificates
) -> None:
    write_model(tmp_path, "echo", echo_config())
    key = certificates.server.key.with_name("encrypted.key")
    encrypt(certificates.server.key, key)
    options = ["--tls-certificate", str(certificates.server.certificate), "--tls-key", str(key)]
    result = refused_start(tmp_path, *options)
    assert f"{key} is encrypted, and gRPC takes no password" in result.stderr
    assert result.returncode == 1
