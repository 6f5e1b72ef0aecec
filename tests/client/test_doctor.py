"""The doctor finds what is wrong, says where to look, and prints no value of a record."""

import datetime
import ipaddress
import shutil
import ssl
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from tests.connect_proxy import connect_proxy

from fedethos.client.doctor import Check, check_paperwork, run_checks
from fedethos.client.doctor_jobs import check_jobs
from fedethos.client.doctor_network import check_network
from fedethos.client.spending import open_site_account, spending_plan
from fedethos.privacy.ledger import Ledger
from fedethos.site import Coordinator, load_site

from .conftest import RUN, Hospital

CANARY = "JANE-DOE-4711"


def worst(checks: list[Check], name: str) -> Check:
    found = [check for check in checks if check.name == name]
    return max(found, key=lambda check: ("ok", "warn", "fail").index(check.state))


def paperwork(hospital: Hospital, backup: Path | None = None) -> list[Check]:
    return list(run_checks(check_paperwork(hospital.site_file, load_site(hospital.site_file), backup=backup)))


def jobs(hospital: Hospital) -> list[Check]:
    return list(run_checks(check_jobs(hospital.folder, load_site(hospital.site_file), None)))


def test_a_site_in_order_has_nothing_to_fix(hospital) -> None:
    hospital.site_file.chmod(0o600)
    (hospital.folder / "records.csv").chmod(0o600)
    checks = [*paperwork(hospital), *jobs(hospital)]
    assert {check.name for check in checks if check.state != "ok"} == {"ca"}  # no TLS in this trial
    assert any("900 records here" in check.said for check in checks)


def test_modes_of_files_are_looked_at(hospital) -> None:
    hospital.site_file.chmod(0o644)
    hospital.key.chmod(0o644)
    hospital.state.chmod(0o755)
    checks = paperwork(hospital)
    assert worst(checks, "site.yaml").state == "warn"
    assert worst(checks, "key").code == "SEC-620"
    assert worst(checks, "disk").state == "warn"


def test_a_damaged_ledger_is_found(hospital) -> None:
    with Ledger(hospital.folder / "ledger.sqlite") as ledger:
        open_site_account(ledger, hospital.job, hospital.site)
    (hospital.folder / "ledger.sqlite.head").unlink()
    assert worst(paperwork(hospital), "ledger").code == "PRIV-312"


def test_a_backup_is_whole_behind_or_of_another_ledger(hospital, tmp_path: Path) -> None:
    copy = tmp_path / "copies"
    copy.mkdir()

    def back_up() -> None:
        for file in hospital.folder.glob("ledger.sqlite*"):
            shutil.copy(file, copy / file.name)

    with Ledger(hospital.folder / "ledger.sqlite") as ledger:
        open_site_account(ledger, hospital.job, hospital.site)
    back_up()
    assert worst(paperwork(hospital, copy), "back-up").state == "ok"
    with Ledger(hospital.folder / "ledger.sqlite") as ledger:
        ledger.commit(spending_plan(hospital.job, hospital.site, RUN))
    assert "lacks the last 1 entries" in worst(paperwork(hospital, copy), "back-up").said
    for file in copy.iterdir():
        file.unlink()
    with Ledger(copy / "ledger.sqlite") as ledger:
        open_site_account(ledger, hospital.job, hospital.site.model_copy(update={"account": "others"}))
    assert worst(paperwork(hospital, copy), "back-up").code == "PRIV-312"


def test_records_that_do_not_fit_are_counted_and_not_shown(hospital) -> None:
    file = hospital.folder / "records.csv"
    header, *rows = file.read_text().splitlines()
    sex = header.split(",").index("sex")
    spoiled = [",".join(CANARY if place == sex else cell for place, cell in enumerate(row.split(","))) for row in rows[:37]]
    file.write_text("\n".join([header, *spoiled, *rows[37:]]) + "\n")
    check = worst(jobs(hospital), f"job {hospital.job.sha256[:12]}")
    assert check.code in ("DATA-121", "DATA-105")
    assert not any(CANARY in one.said + one.fix for one in jobs(hospital))


def test_a_declared_size_far_from_the_truth_is_noticed(open_hospital) -> None:
    sites = {name: {"declared_size": 5_000} for name in ("hospital-a", "hospital-b", "hospital-c")}
    hospital = open_hospital(job={"federation": {"sites": sites}})
    hospital.approve()
    assert worst(jobs(hospital), "triage").state == "warn"


def test_missing_records_and_stale_approvals_are_found(hospital, open_hospital) -> None:
    (hospital.folder / "records.csv").unlink()
    assert worst(jobs(hospital), "records").code == "DATA-101"
    tighter = open_hospital(site={"caps": {"lifetime_epsilon": 7.0}})
    assert worst(jobs(tighter), f"job {hospital.job.sha256[:12]}").code == "SEC-614"


# --- network ---


class Coordinating(BaseHTTPRequestHandler):
    skew = datetime.timedelta(0)
    status = 200

    def do_GET(self) -> None:
        self.send_response(self.status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def date_time_string(self, timestamp: float | None = None) -> str:
        from email.utils import format_datetime

        return format_datetime(datetime.datetime.now(datetime.UTC) + self.skew, usegmt=True)

    def log_message(self, *args: object) -> None:
        pass


Serve = Callable[..., Coordinator]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """``serve(skew=…, status=…, days=…, name=…)``: a coordinator with a certificate of its own, on loopback."""
    servers: list[HTTPServer] = []

    def start(*, skew: float = 0.0, status: int = 200, days: float = 1.0, name: str = "127.0.0.1") -> Coordinator:
        handler = type("Handler", (Coordinating,), {"skew": datetime.timedelta(seconds=skew), "status": status})
        server = HTTPServer(("127.0.0.1", 0), handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        certificate(tmp_path / "server.pem", days=days, name=name)
        context.load_cert_chain(tmp_path / "server.pem")
        server.socket = context.wrap_socket(server.socket, server_side=True)
        servers.append(server)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return Coordinator(address=f"127.0.0.1:{server.server_port}", ca="server.pem")

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def certificate(path: Path, *, days: float, name: str) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "coordinator")])
    now = datetime.datetime.now(datetime.UTC)
    built = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=2))
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(name))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, SHA256())
    )
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    path.write_bytes(built.public_bytes(Encoding.PEM) + private)


def network(folder: Path, coordinator: Coordinator) -> list[Check]:
    return list(run_checks(check_network(folder, coordinator)))


def test_a_coordinator_in_order_answers(serve: Serve, tmp_path: Path) -> None:
    checks = network(tmp_path, serve())
    assert [(check.name, check.state) for check in checks] == [(name, "ok") for name in ("dns", "tcp", "tls", "answer", "clock")]


@pytest.mark.parametrize(
    ("trouble", "code"),
    [({"skew": 300.0}, "NET-554"), ({"status": 503}, "NET-553"), ({"name": "127.0.0.2"}, "SEC-625"), ({"days": -1.0}, "SEC-625")],
)
def test_each_trouble_has_its_code(serve: Serve, tmp_path: Path, trouble: dict[str, object], code: str) -> None:
    failures = [check.code for check in network(tmp_path, serve(**trouble)) if check.state == "fail"]
    assert failures == [code]


def test_another_authority_is_not_accepted(serve: Serve, tmp_path: Path) -> None:
    coordinator = serve()
    certificate(tmp_path / "other.pem", days=1, name="127.0.0.1")
    other = coordinator.model_copy(update={"ca": "other.pem"})
    assert [check.code for check in network(tmp_path, other) if check.state == "fail"] == ["SEC-625"]


def test_a_closed_port_a_wrong_name_and_a_plain_server_are_told_apart(tmp_path: Path) -> None:
    server = HTTPServer(("127.0.0.1", 0), Coordinating)
    port = server.server_port
    certificate(tmp_path / "ca.pem", days=1, name="127.0.0.1")
    here = Coordinator(address=f"127.0.0.1:{port}", ca="ca.pem")
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    assert [check.code for check in network(tmp_path, here) if check.state == "fail"] == ["NET-552"]
    plain = Coordinator(address=f"127.0.0.1:{port}", insecure=True)
    assert all(check.state == "ok" for check in network(tmp_path, plain))
    server.shutdown()
    server.server_close()
    assert [check.code for check in network(tmp_path, here) if check.state == "fail"] == ["NET-551"]
    nowhere = Coordinator(address=f"{'x' * 64}.example:{port}", ca="ca.pem")  # no name has so long a part, so nobody is asked
    assert [check.code for check in network(tmp_path, nowhere) if check.state == "fail"] == ["NET-550"]


def test_through_a_proxy_the_coordinator_itself_is_checked(serve: Serve, tmp_path: Path) -> None:
    with connect_proxy() as proxy:
        coordinator = serve().model_copy(update={"proxy": proxy.url})
        checks = network(tmp_path, coordinator)
        assert [(check.name, check.state) for check in checks] == [(name, "ok") for name in ("dns", "tcp", "tls", "answer", "clock")]
        assert [line.split()[:2] for line in proxy.asked] == [["CONNECT", coordinator.address]]
        skewed = serve(skew=300.0).model_copy(update={"proxy": proxy.url})
        assert [check.code for check in network(tmp_path, skewed) if check.state == "fail"] == ["NET-554"]


def test_a_proxy_that_lets_nobody_through_is_told_apart_from_one_that_is_not_there(serve: Serve, tmp_path: Path) -> None:
    with connect_proxy(refuse=True) as proxy:
        coordinator = serve().model_copy(update={"proxy": proxy.url})
        [refused] = [check for check in network(tmp_path, coordinator) if check.state == "fail"]
    assert refused.code == "NET-555" and "403" in refused.said
    [absent] = [check for check in network(tmp_path, coordinator) if check.state == "fail"]
    assert absent.code == "NET-551" and "the proxy" in absent.said


def test_an_authority_that_has_ended_is_found(open_hospital, tmp_path: Path) -> None:
    hospital = open_hospital(site={"coordinator": {"address": "fl.example.org:443", "insecure": False, "ca": "ca.pem"}})
    assert worst(paperwork(hospital), "ca").code == "SEC-624"
    for days, state in ((-1.0, "fail"), (10.0, "warn"), (300.0, "ok")):
        certificate(hospital.folder / "ca.pem", days=days, name="127.0.0.1")
        assert worst(paperwork(hospital), "ca").state == state
