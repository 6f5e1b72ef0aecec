"""site.yaml: strict, private, and only ever tighter than the job."""

from datetime import UTC, datetime, time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedethos.caps import Caps
from fedethos.errors import FedethosError
from fedethos.job_data import Data
from fedethos.site import load_site

DOCUMENT = """
schema: fedethos/site/v1
account: ward-7
data: {path: records.csv, map: {sex: {"1": Male, "0": Female}}}
caps: {lifetime_epsilon: 8, per_job_epsilon: 4}
split_salt: sixteen characters or more
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "site.yaml"
    path.write_text(DOCUMENT)
    return path


def test_defaults_are_the_cautious_ones(file: Path) -> None:
    site = load_site(file)
    assert site.caps == Caps(lifetime_epsilon=8.0, per_job_epsilon=4.0, delta=1e-5, rounds=100)
    assert site.ledger == "ledger.sqlite"


def test_site_names_its_own_file_values_and_salt_and_nothing_else(file: Path) -> None:
    job = Data.model_validate(
        {
            "path": "builtin:adult",
            "text": "{age}",
            "label": {"column": "y", "values": ["no", "yes"], "favorable": "yes"},
            "sensitive": {"sex": ["Female", "Male"]},
            "map": {"sex": {"F": "Female"}, "y": {"1": "yes"}},
        }
    )
    here = load_site(file).contract(job)
    assert (here.path, here.split_salt) == ("records.csv", "sixteen characters or more")
    assert here.map == {"sex": {"1": "Male", "0": "Female"}, "y": {"1": "yes"}}
    assert here.model_copy(update={"path": job.path, "map": job.map, "split_salt": None}) == job


@pytest.mark.parametrize(
    ("override", "code"),
    [
        ("acount=ward-8", "CFG-201"),
        ("caps.lifetime_epsilon=null", "CFG-203"),
        ("caps.lifetime_epsilon=-1", "CFG-204"),
        ("caps.lifetime_epsilon=.inf", "CFG-203"),
        ("caps.per_job_epsilon=9", "CFG-225"),
        ("caps.delta=0.5", "CFG-204"),
        ("caps.rounds=0", "CFG-204"),
        ("split_salt=short", "CFG-204"),
        ("account=../ward", "CFG-204"),
        ("name=a/b", "CFG-204"),
        ("coordinator={address: fl.example.org:443, insecure: true}", "CFG-401"),
        ("coordinator={address: 10.0.0.1:443, insecure: true}", "CFG-401"),
        ("coordinator={address: fl.example.org:443}", "CFG-402"),
        ("coordinator={address: fl.example.org:0, ca: ca.pem}", "CFG-403"),
        ("coordinator={address: 'fl.example.org:99999', ca: ca.pem}", "CFG-403"),
        ("coordinator={address: https://fl.example.org, ca: ca.pem}", "CFG-204"),
        ("coordinator={address: fl.example.org:443, ca: ca.pem, proxy: 'http://user:word@proxy:1'}", "CFG-204"),
        ("coordinator={address: fl.example.org:443, ca: ca.pem, proxy: 'http://proxy.example.org'}", "CFG-204"),
        ("coordinator={address: fl.example.org:443, ca: ca.pem, proxy: 'http://proxy.example.org:99999'}", "CFG-403"),
        ("coordinator={address: fl.example.org:443, ca: ca.pem, proxy: 'https://proxy.example.org:3128'}", "CFG-204"),
        ("hours=20:00", "CFG-404"),
        ("hours=24:00-06:00", "CFG-404"),
        ("device=gpu", "CFG-204"),
        ("memory_gb=0", "CFG-204"),
    ],
)
def test_what_is_refused(file: Path, override: str, code: str) -> None:
    with pytest.raises(FedethosError) as refusal:
        load_site(file, [override])
    assert refusal.value.code == code
    assert "short" not in str(refusal.value) and "ward" not in str(refusal.value)


@pytest.mark.parametrize("key", ["account", "data", "caps", "split_salt"])
def test_nothing_that_matters_has_a_default(file: Path, key: str) -> None:
    file.write_text("\n".join(line for line in DOCUMENT.splitlines() if not line.startswith(key)))
    with pytest.raises(FedethosError, match="CFG-202"):
        load_site(file)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "[::1]", "localhost"])
def test_without_tls_only_to_this_machine(file: Path, host: str) -> None:
    coordinator = load_site(file, [f"coordinator={{address: '{host}:9443', insecure: true}}"]).coordinator
    assert coordinator is not None and (coordinator.host, coordinator.port) == (host.strip("[]"), 9443)


@pytest.mark.parametrize(
    ("hours", "clock", "open_"),
    [
        ("08:00-18:00", time(8, 0), True),
        ("08:00-18:00", time(18, 0), False),
        ("08:00-18:00", time(7, 59), False),
        ("20:00-06:00", time(23, 0), True),
        ("20:00-06:00", time(5, 59), True),
        ("20:00-06:00", time(6, 0), False),
        ("20:00-06:00", time(12, 0), False),
        ("06:00-06:00", time(3, 0), True),
        ("null", time(3, 0), True),
    ],
)
def test_hours_are_local_and_may_go_over_midnight(file: Path, hours: str, clock: time, open_: bool) -> None:
    here = datetime.combine(datetime(2026, 3, 2).date(), clock).astimezone()
    assert load_site(file, [f"hours={hours}"]).may_train_at(here) is open_
    assert load_site(file, [f"hours={hours}"]).may_train_at(here.astimezone(UTC)) is open_


CAPS = st.builds(
    lambda job, more, rounds, delta: Caps(lifetime_epsilon=job + more, per_job_epsilon=job, rounds=rounds, delta=delta),
    st.sampled_from([1.0, 2.0]),
    st.sampled_from([0.0, 1.0]),
    st.sampled_from([5, 6]),
    st.sampled_from([1e-5, 1e-6]),
)


@given(new=CAPS, old=CAPS)
def test_tighter_means_that_no_cap_allows_more(new: Caps, old: Caps) -> None:
    looser = [name for name in ("lifetime_epsilon", "per_job_epsilon", "rounds") if getattr(new, name) > getattr(old, name)]
    assert new.tightens(old) == (not looser and new.delta == old.delta)
