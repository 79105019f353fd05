"""Encryption, identities and keys."""

import subprocess
from pathlib import Path

import grpc
import pytest
from trunkline import TLS, AsyncClient, Client, RetryPolicy, UnavailableError

from tests.proto.fake_inference import WORDS, FakeInference, serve

ONCE = RetryPolicy(max_attempts=1)


def openssl(directory: Path, *arguments: str) -> None:
    command = ["openssl", *arguments]
    subprocess.run(command, cwd=directory, check=True, capture_output=True)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An authority's ca.pem, and {server,client}.{pem,key} that it has signed."""
    directory = tmp_path_factory.mktemp("certificates")
    new_key = ("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    openssl(
        directory, *new_key, "-x509", "-days", "2", "-subj", "/CN=Test authority",
        "-keyout", "ca.key", "-out", "ca.pem",
    )  # fmt: skip
    (directory / "names").write_text("subjectAltName=DNS:localhost")
    for name in ("server", "client"):
        openssl(
            directory, *new_key, "-subj", f"/CN={name}",
            "-keyout", f"{name}.key", "-out", f"{name}.csr",
        )  # fmt: skip
        openssl(
            directory, "x509", "-req", "-days", "2", "-in", f"{name}.csr", "-extfile", "names",
            "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-out", f"{name}.pem",
        )  # fmt: skip
    return directory


def server_credentials(certificates: Path, *, ask_client: bool) -> grpc.ServerCredentials:
    pair = ((certificates / "server.key").read_bytes(), (certificates / "server.pem").read_bytes())
    authority = (certificates / "ca.pem").read_bytes() if ask_client else None
    return grpc.ssl_server_credentials([pair], authority, require_client_auth=ask_client)


async def test_tls_with_an_authority_of_ones_own(
    certificates: Path, service: FakeInference
) -> None:
    tls = TLS(ca=certificates / "ca.pem")
    with serve(service, server_credentials(certificates, ask_client=False)) as address:
        with Client(address, tls=tls) as client:
            assert client.generate("Once").text() == "".join(WORDS)
        async with AsyncClient(address, tls=tls) as client:
            assert await client.generate("Once").text() == "".join(WORDS)


def test_a_server_of_an_unknown_authority_is_refused(
    certificates: Path, service: FakeInference
) -> None:
    with (
        serve(service, server_credentials(certificates, ask_client=False)) as address,
        Client(address, tls=TLS(), retry=ONCE) as client,
        pytest.raises(UnavailableError),
    ):
        client.models()
    assert service.headers == []


def test_mutual_tls(certificates: Path, service: FakeInference) -> None:
    ca = certificates / "ca.pem"
    mutual = TLS(ca, cert=certificates / "client.pem", key=certificates / "client.key")
    with serve(service, server_credentials(certificates, ask_client=True)) as address:
        with Client(address, tls=mutual) as client:
            assert client.models()
        with Client(address, tls=TLS(ca), retry=ONCE) as client, pytest.raises(UnavailableError):
            client.models()


def test_a_certificate_without_its_key_is_refused() -> None:
    with pytest.raises(ValueError, match="give both or none"):
        TLS(cert="client.pem")


async def test_the_api_key_goes_with_each_call(service: FakeInference, address: str) -> None:
    with Client(address, api_key="secret") as client:
        client.generate("Once").text()
        client.tokenize("a")
    async with AsyncClient(address, api_key="secret") as client:
        await client.chat([]).text()
        await client.tokenize("a")
    assert [headers["authorization"] for headers in service.headers] == ["Bearer secret"] * 4


def test_no_api_key_no_header(service: FakeInference, address: str) -> None:
    with Client(address) as client:
        client.generate("Once").text()
    assert "authorization" not in service.headers[0]
