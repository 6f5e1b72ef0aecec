"""An approval holds for one job, one code, one set of caps and one key, and for nothing that was edited."""

import base64
import json
from collections.abc import Callable

import pytest
import yaml
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA384

from fedethos import code_identity
from fedethos.client import approvals
from fedethos.client.approvals import approval_path, approved_jobs, find_approval, resign_approvals, withdraw_approval
from fedethos.client.node_key import load_node_key, public_line, write_node_key
from fedethos.errors import FedethosError
from fedethos.site import load_site
from fedethos.storage import canonical_line


def refusal(act: Callable[[], object]) -> str:
    with pytest.raises(FedethosError) as error:
        act()
    return error.value.code


def test_an_approval_comes_back_as_it_was_given(hospital) -> None:
    approval = hospital.approval()
    assert (approval.job, approval.job_sha256) == (hospital.job, hospital.job.sha256)
    assert (approval.site, approval.caps) == ("hospital-a", hospital.site.caps)
    assert dict(approval.tensors) == hospital.tensors
    assert approval.code_sha256 == code_identity.code_sha256()
    assert approved_jobs(hospital.state) == [hospital.job.sha256]
    assert approval_path(hospital.state, hospital.job.sha256).parent.stat().st_mode & 0o077 == 0


def test_a_job_that_was_not_approved_is_refused(open_hospital) -> None:
    assert refusal(open_hospital().approval) == "SEC-611"


@pytest.mark.parametrize("changed", [{"privacy": {"epsilon": 3.9}}, {"federation": {"rounds": 4}}, {"data": {"split_salt": "x"}}])
def test_any_change_of_the_job_needs_a_new_approval(hospital, open_hospital, changed: dict[str, object]) -> None:
    assert refusal(open_hospital(job=changed).approval) == "SEC-611"


def test_other_caps_need_a_new_approval(hospital, open_hospital) -> None:
    tighter = open_hospital(site={"caps": {"lifetime_epsilon": 7.0}})
    assert refusal(tighter.approval) == "SEC-614"
    tighter.approve()
    assert tighter.approval().caps.lifetime_epsilon == 7.0


@pytest.mark.parametrize("changed", [{"name": "hospital-b"}, {"account": "others"}])
def test_another_name_or_account_needs_a_new_approval(hospital, open_hospital, changed: dict[str, object]) -> None:
    assert refusal(open_hospital(site=changed).approval) == "SEC-614"


def test_other_code_needs_a_new_approval(hospital, monkeypatch) -> None:
    monkeypatch.setattr(approvals, "code_sha256", lambda: "0" * 64)
    assert refusal(hospital.approval) == "SEC-613"


def test_code_identity_notices_one_changed_byte(tmp_path, monkeypatch) -> None:
    package = tmp_path / "fedethos"
    (package / "room").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "room" / "code.py").write_text("a = 1\n")
    monkeypatch.setattr(code_identity.fedethos, "__file__", str(package / "__init__.py"))
    before = code_identity.code_sha256()
    (package / "room" / "code.py").write_text("a = 2\n")
    changed = code_identity.code_sha256()
    (package / "room" / "code.py").write_text("a = 1\n")
    (package / "__pycache__").mkdir()
    (package / "__pycache__" / "x.py").write_text("compiled on another day")
    assert code_identity.code_sha256() == before != changed
    (package / "room" / "code.py").rename(package / "code.py")
    assert code_identity.code_sha256() != before


def test_an_approval_of_a_version_with_other_documents_asks_for_a_new_one(hospital) -> None:
    """Signed honestly, before an upgrade that changed the job's keys: not a forgery, but other code."""
    path = approval_path(hospital.state, hospital.job.sha256)
    approval = json.loads(path.read_text())["approval"]
    approval["job"]["training"]["a_key_of_then"] = 1
    signature = load_node_key(hospital.key).sign(b"fedethos/approval/v1\n" + canonical_line(approval), ec.ECDSA(SHA384()))
    path.write_text(json.dumps({"approval": approval, "signature": base64.b64encode(signature).decode()}))
    assert refusal(hospital.approval) == "SEC-613"


def test_an_edited_approval_is_refused(hospital) -> None:
    path = approval_path(hospital.state, hospital.job.sha256)
    content = json.loads(path.read_text())
    content["approval"]["caps"]["lifetime_epsilon"] = 100.0
    path.write_text(json.dumps(content))
    site = hospital.site.model_copy(update={"caps": hospital.site.caps.model_copy(update={"lifetime_epsilon": 100.0})})
    assert refusal(lambda: find_approval(hospital.state, hospital.job.sha256, hospital.key, site)) == "SEC-612"


def test_an_approval_under_the_name_of_another_job_is_refused(hospital) -> None:
    other = "f" * 64
    approval_path(hospital.state, hospital.job.sha256).rename(approval_path(hospital.state, other))
    assert refusal(lambda: find_approval(hospital.state, other, hospital.key, hospital.site)) == "SEC-612"


@pytest.mark.parametrize(
    "content",
    [b"", b"{}", b"[]", b"[" * 100_000, b"\xff", b'{"approval": NaN, "signature": "AA=="}', b'{"approval": null, "signature": "AA=="}'],
)
def test_rubbish_is_no_approval(hospital, content: bytes) -> None:
    approval_path(hospital.state, hospital.job.sha256).write_bytes(content)
    assert refusal(hospital.approval) == "SEC-612"


def test_an_approval_of_another_site_is_refused(hospital) -> None:
    hospital.key.unlink()
    write_node_key(hospital.key)
    assert refusal(hospital.approval) == "SEC-612"


@pytest.mark.parametrize("name", ["../../etc/passwd", "", "F" * 64, "0" * 63, "0" * 64 + "/"])
def test_what_the_network_calls_a_job_never_becomes_another_path(hospital, name: str) -> None:
    assert refusal(lambda: find_approval(hospital.state, name, hospital.key, hospital.site)) == "SEC-611"


def test_an_approval_outside_of_its_folder_is_never_opened(hospital) -> None:
    path = approval_path(hospital.state, hospital.job.sha256)
    (hospital.state / "elsewhere.json").write_bytes(path.read_bytes())
    assert refusal(lambda: find_approval(hospital.state, "../elsewhere", hospital.key, hospital.site)) == "SEC-611"


def test_an_approval_can_be_taken_back(hospital) -> None:
    withdraw_approval(hospital.state, hospital.job.sha256)
    assert refusal(hospital.approval) == "SEC-611"
    assert refusal(lambda: withdraw_approval(hospital.state, hospital.job.sha256)) == "SEC-611"


def test_approvals_survive_an_exchange_of_the_key_only_when_the_old_one_signed_them(hospital) -> None:
    old = load_node_key(hospital.key).public_key()
    hospital.key.unlink()
    new = write_node_key(hospital.key)
    assert resign_approvals(hospital.state, old, new) == [hospital.job.sha256]
    assert hospital.approval().job == hospital.job
    assert resign_approvals(hospital.state, old, new) == [hospital.job.sha256]  # after an interruption: nothing left to do
    hospital.key.unlink()
    assert refusal(lambda: resign_approvals(hospital.state, old, write_node_key(hospital.key))) == "SEC-612"


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o620])
def test_a_key_that_others_may_read_is_refused(hospital, mode: int) -> None:
    hospital.key.chmod(mode)
    assert refusal(hospital.approval) == "SEC-620"


def test_a_key_of_another_kind_is_refused(tmp_path) -> None:
    from cryptography.hazmat.primitives.asymmetric import ed25519
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    path = tmp_path / "node.key"
    p384 = ec.generate_private_key(ec.SECP384R1())
    kinds = [
        ec.generate_private_key(ec.SECP256R1()).private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()),
        ed25519.Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()),
        p384.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        b"",
    ]
    for content in kinds:
        path.write_bytes(content)
        path.chmod(0o600)
        assert refusal(lambda: load_node_key(path)) == "SEC-621"
    path.unlink()
    assert refusal(lambda: load_node_key(path)) == "SEC-621"


def test_a_key_is_private_from_its_first_moment_and_never_overwritten(tmp_path) -> None:
    path = tmp_path / "node.key"
    key = write_node_key(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert public_line(load_node_key(path)) == public_line(key)
    assert public_line(key).startswith("ecdsa-sha2-nistp384 ")
    assert refusal(lambda: write_node_key(path)) == "SEC-622"


def test_a_node_needs_a_name_and_a_coordinator(hospital) -> None:
    content = yaml.safe_load(hospital.site_file.read_text())
    for key in ("name", "coordinator"):
        hospital.site_file.write_text(yaml.safe_dump({name: value for name, value in content.items() if name != key}))
        assert refusal(load_site(hospital.site_file).as_node) == "CFG-400"
