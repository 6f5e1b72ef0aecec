"""A real SuperLink with TLS in this process, so that a node's connection is tested against Flower itself."""

import datetime
import ipaddress
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import uvicorn
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import Message, RecordDict
from flwr.server.superlink.linkstate import LinkState
from flwr.supercore.constant import TaskType
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_children_ids_from_object_content, get_object_tree
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.superlink.main import create_app

from fedethos.flower import identify_process, with_message_id

FEDERATION = "@none/default"


@dataclass
class SuperLink:
    """``address`` host:port, ``authority`` the CA's certificate in PEM; ``state`` is Flower's own."""

    address: str
    authority: bytes
    state: LinkState
    run_id: int
    token: str  # the ServerApp's
    asked: dict[str, Message] = field(default_factory=dict)

    def register(self, key: ec.EllipticCurvePrivateKey) -> int:
        """What `flwr supernode register` does."""
        return self.state.create_node("aid", "owner", public_key_to_bytes(key.public_key()), 0)

    def ask(self, node_id: int, message_type: str, content: RecordDict) -> str:
        """What a ServerApp does: push a message to a node. Returns its id."""
        message_id, complete = self.announce(node_id, message_type, content)
        complete()
        return message_id

    def announce(self, node_id: int, message_type: str, content: RecordDict) -> tuple[str, Callable[[], None]]:
        """The same up to the last object, which is the message itself. Returns its id, and what sends that object."""
        identify_process(self.run_id)
        message = Message(content, node_id, message_type)
        with_message_id(message, message.object_id)
        self.asked[message.metadata.message_id] = message
        return self._push(message)

    def ask_again(self, asked: str) -> str:
        """The very same message once more, under its own id, which no honest coordinator does."""
        self.state.delete_messages({asked})
        self.asked[asked].metadata.delivered_at = ""
        return self._push(self.asked[asked])

    def _push(self, message: Message) -> str:
        objects = {name: item.deflate() for name, item in get_all_nested_objects(message).items()}
        session = self.state.start_session(self.run_id)
        stored, missing = self.state.store_message_and_object_tree(message, get_object_tree(message), session)
        assert stored
        for name in sorted(missing, key=lambda name: name == message.object_id)[:-1]:
            self.state.store_object(self.run_id, session, name, objects[name])
        return message.object_id, lambda: self._stored(session, message.object_id, objects)

    def _stored(self, session: str, name: str, objects: Mapping[str, bytes]) -> None:
        assert self.state.store_object(self.run_id, session, name, objects[name])

    def reply(self, asked: str, *, seconds: float = 240.0) -> RecordDict | None:
        """Wait for the reply to a message; None when none comes."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if replies := self.state.get_message_res({asked}, self.run_id):
                root = replies[0].metadata.message_id
                contents: dict[str, bytes] = {}
                self._collect(root, contents)
                message = inflate_object_from_contents(root, contents)
                assert isinstance(message, Message)
                return message.content
            time.sleep(0.05)
        return None

    def _collect(self, name: str, contents: dict[str, bytes]) -> None:
        while not (content := self.state.get_object(self.run_id, name)):  # announced, and still on its way
            assert content is not None
            time.sleep(0.01)
        contents[name] = content
        for child in get_object_children_ids_from_object_content(content):
            self._collect(child, contents)

    def end_run(self) -> None:
        task = self.state.get_run_info(run_ids=[self.run_id])[0].primary_task_id
        assert self.state.finish_task(task, sub_status="completed", details="")


def certificate_authority(folder: Path, *, hours: float = 24.0) -> tuple[Path, Path, bytes]:
    """A server certificate for the loopback interface that is valid for ``hours`` from now: (certificate, key, CA in PEM)."""
    now = datetime.datetime.now(datetime.UTC)
    start, end = min(now, now + datetime.timedelta(hours=hours)) - datetime.timedelta(hours=1), now + datetime.timedelta(hours=hours)

    def name(text: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])

    def builder(subject: str, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        made = x509.CertificateBuilder().subject_name(name(subject)).issuer_name(name("test CA")).public_key(key.public_key())
        return made.serial_number(x509.random_serial_number()).not_valid_before(start).not_valid_after(end)

    authority_key, server_key = ec.generate_private_key(ec.SECP384R1()), ec.generate_private_key(ec.SECP384R1())
    authority = (
        builder("test CA", authority_key)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(authority_key.public_key()), critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    server = (
        builder("localhost", server_key)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()), critical=False)
        .add_extension(x509.ExtendedKeyUsage([x509.ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    certificate, key = folder / "server.pem", folder / "server.key"
    certificate.write_bytes(server.public_bytes(serialization.Encoding.PEM))
    key.write_bytes(server_key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
    return certificate, key, authority.public_bytes(serialization.Encoding.PEM)


@contextmanager
def running_superlink(folder: Path) -> Iterator[SuperLink]:
    """A SuperLink that is up, with one running run."""
    certificate, key, authority = certificate_authority(folder)
    app = create_app()
    state = app.state.linkstate_factory.state()
    run_id = state.create_run("f/a", "1.0.0", "0" * 64, {}, FEDERATION, None, "aid", TaskType.SERVER_APP)
    task = state.get_run_info(run_ids=[run_id])[0].primary_task_id
    token = state.claim_task(task)
    assert token is not None and state.activate_task(task)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    server = uvicorn.Server(
        uvicorn.Config(app, host="127.0.0.1", port=port, log_level="error", ssl_certfile=str(certificate), ssl_keyfile=str(key))
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    closing = threading.Event()

    def heartbeats() -> None:  # the run's, which its ServerApp sends
        while not closing.wait(5.0):
            state.acknowledge_task_heartbeat(task)

    beats = threading.Thread(target=heartbeats, daemon=True)
    beats.start()
    try:
        yield SuperLink(f"127.0.0.1:{port}", authority, state, run_id, token)
    finally:
        closing.set()
        server.should_exit = True
        thread.join()
        beats.join()
