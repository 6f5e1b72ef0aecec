"""`fedethos keys trial`: documents that load, files that only their owner reads, a certificate that a TLS client accepts."""

from __future__ import annotations

import socket
import ssl
import stat
import threading
from datetime import date

import pytest

from fedethos.cli import run
from fedethos.server_document import load_server
from fedethos.trust import load_trust, public_key_pem


@pytest.fixture(scope="module")
def trial(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trial") / "made"
    assert run(["keys", "trial", str(folder), "--site", "north", "--site", "south", "--host", "coordinator.example"]) == 0
    return folder


def test_the_documents_load_and_every_site_has_its_own_key(trial):
    server = load_server(trial / "server" / "server.yaml")
    keys = load_trust(server.trust).keys_on(date(2026, 1, 1))
    assert sorted(keys) == ["north", "south"] and len(set(keys.values())) == 2
    assert server.address == ("127.0.0.1", 9443)


def test_what_is_private_is_readable_by_its_owner_alone(trial):
    private = [*trial.glob("*/*.key"), *trial.glob("*/*.yaml")]
    assert len(private) == 7
    assert {stat.S_IMODE(path.stat().st_mode) for path in private} == {0o600}


def test_no_private_key_of_the_authority_is_kept(trial):
    keys = [path for path in trial.rglob("*") if path.is_file() and b"PRIVATE KEY" in path.read_bytes()]
    assert sorted(str(path.relative_to(trial)) for path in keys) == ["north/node.key", "server/server.key", "south/node.key"]


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost", "coordinator.example"])
def test_a_tls_client_with_the_sites_ca_accepts_the_server(trial, name):
    assert _handshake(trial, name) is None


def test_a_name_that_is_not_in_the_certificate_is_refused(trial):
    assert isinstance(_handshake(trial, "elsewhere.example"), ssl.SSLCertVerificationError)


def test_a_folder_with_something_in_it_is_left_alone(trial, capsys):
    before = sorted(trial.rglob("*"))
    assert run(["keys", "trial", str(trial)]) == 2
    assert "CFG-375" in capsys.readouterr().err
    assert sorted(trial.rglob("*")) == before


def test_pem_and_openssh_are_the_same_key_and_other_keys_are_refused(trial):
    line = load_trust(trial / "server" / "trust.yaml").sites["north"].public_key
    assert public_key_pem(public_key_pem(line).decode()) == public_key_pem(line)
    for text in ("ssh-ed25519 AAAA", "ecdsa-sha2-nistp384 AAAA", "nothing", ""):
        with pytest.raises(ValueError, match="not"):
            public_key_pem(text)


def _handshake(trial, name):
    """What a client that trusts the sites' CA says to the server, None for agreement."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(trial / "server" / "server.pem", trial / "server" / "server.key")
    ours, theirs = socket.socketpair()

    def serve():
        try:
            context.wrap_socket(theirs, server_side=True).close()
        except OSError:
            theirs.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        client = ssl.create_default_context(cafile=str(trial / "north" / "ca.pem"))
        client.wrap_socket(ours, server_hostname=name).close()
    except ssl.SSLError as error:
        return error
    finally:
        ours.close()
        thread.join()
    return None
