"""Is this site ready? Each check says what it found and what to do; none prints a value of a record.

Checks of the network are in ``client/doctor_network.py``, of the records and models in ``client/doctor_jobs.py``.
"""

from __future__ import annotations

import shutil
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from cryptography import x509

from fedethos.client import egress
from fedethos.client.ledger_of_site import check_ledger_remembers, ledger_state
from fedethos.client.node_key import fingerprint, load_node_key
from fedethos.errors import FedethosError
from fedethos.privacy.ledger_chain import read_only
from fedethos.privacy.statement import spending
from fedethos.site import SiteDocument

State = Literal["ok", "warn", "fail"]

_LEAST_FREE_GB = 1.0
_RENEW_DAYS = 30


@dataclass(frozen=True)
class Check:
    """``code``: of the refusal behind a failure."""

    name: str
    state: State
    said: str
    fix: str = ""
    code: str = ""


def run_checks(checks: dict[str, Callable[[], Iterator[Check]]]) -> Iterator[Check]:
    """One after the other; what refuses is a failed check."""
    for name, check in checks.items():
        try:
            yield from check()
        except FedethosError as error:
            yield failed(name, error)


def failed(name: str, error: FedethosError) -> Check:
    place = f" ({error.where})" if error.where else ""
    return Check(name, "fail", f"{error.code} {error.what}{place}", error.fix, error.code)


def check_paperwork(site_file: Path, site: SiteDocument, *, backup: Path | None) -> dict[str, Callable[[], Iterator[Check]]]:
    """Files of the site on this machine. ``backup``: a folder with copies, to be compared."""
    folder = site_file.parent
    checks: dict[str, Callable[[], Iterator[Check]]] = {
        "site.yaml": lambda: _document(site_file, site),
        "key": lambda: _key(folder / site.key),
        "ca": lambda: _authority(folder, site),
        "disk": lambda: _disk(folder / site.state),
        "ledger": lambda: _ledger(folder / site.ledger),
        "egress": lambda: _egress(folder, site),
    }
    if backup is not None:
        checks["back-up"] = lambda: _backup(folder / site.ledger, backup / Path(site.ledger).name)
    return checks


def _document(path: Path, site: SiteDocument) -> Iterator[Check]:
    name, coordinator = site.as_node()
    if stat.S_IMODE(path.stat().st_mode) & 0o077:
        yield Check(
            "site.yaml", "warn", "others on this machine can read it, and the split's secret salt is in it", f"chmod 600 {path.name}"
        )
    yield Check("site.yaml", "ok", f"{name}, coordinator {coordinator.address}")


def _key(path: Path) -> Iterator[Check]:
    yield Check("key", "ok", f"EC P-384, readable by you alone, {fingerprint(load_node_key(path))}")


def _authority(folder: Path, site: SiteDocument) -> Iterator[Check]:
    _, coordinator = site.as_node()
    if coordinator.ca is None:
        yield Check("ca", "warn", "no TLS: on this machine alone, for a trial")
        return
    try:
        certificates = x509.load_pem_x509_certificates((folder / coordinator.ca).read_bytes())
    except (OSError, ValueError) as error:
        said = f"{coordinator.ca} is no PEM file with certificates ({type(error).__name__})"
        yield Check("ca", "fail", said, "Ask the coordinator for the certificate of its authority.", "SEC-624")
        return
    ends = min(certificate.not_valid_after_utc for certificate in certificates)
    days = (ends - datetime.now(UTC)).days
    if days < 0:
        yield Check("ca", "fail", f"{coordinator.ca} ended on {ends.date()}", "Ask the coordinator for the new one.", "SEC-624")
    else:
        fix = "Ask the coordinator for the new one in time." if days < _RENEW_DAYS else ""
        yield Check("ca", "warn" if fix else "ok", f"{coordinator.ca} holds until {ends.date()}", fix)


def _disk(state: Path) -> Iterator[Check]:
    place = state
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free / 1e9
    if free < _LEAST_FREE_GB:
        yield Check("disk", "fail", f"{free:.1f} GB free", f"Free at least {_LEAST_FREE_GB:g} GB: a full disk stops the ledger.", "RUN-904")
    else:
        yield Check("disk", "ok", f"{free:.0f} GB free")
    if state.exists() and stat.S_IMODE(state.stat().st_mode) & 0o077:
        yield Check("disk", "warn", "others on this machine can look into the state folder", f"chmod 700 {state.name}")


def _ledger(path: Path) -> Iterator[Check]:
    accounts = spending(ledger_state(path))
    if not accounts:
        yield Check("ledger", "ok", "nothing spent yet")
    for account in accounts:
        said = f"{account.account}: epsilon {account.epsilon:.2f} of {account.lifetime_epsilon:g} spent, every entry checked"
        yield Check("ledger", "warn" if account.simulated else "ok", said + (", an account of simulations" if account.simulated else ""))


def _egress(folder: Path, site: SiteDocument) -> Iterator[Check]:
    lines = egress.read(folder / site.state / egress.FILE)
    check_ledger_remembers(lines, ledger_state(folder / site.ledger))
    yield Check("egress", "ok", f"{len(lines)} messages left, none changed or missing; the ledger knows all that cost")


def _backup(ledger: Path, copy: Path) -> Iterator[Check]:
    """The copy has to be whole, of this ledger, and not behind."""
    if not ledger.exists():
        yield Check("back-up", "ok", "there is no ledger to back up yet")
        return
    here, _ = read_only(ledger)
    there, _ = read_only(copy)
    if here[: len(there)] != there:
        fix = "Make a new one: fedethos client backup FOLDER"
        yield Check("back-up", "fail", "the copy is of another ledger", fix, "PRIV-312")
    elif len(there) < len(here):
        said = f"the copy lacks the last {len(here) - len(there)} entries"
        yield Check("back-up", "warn", said, "Make a new one: fedethos client backup FOLDER")
    else:
        yield Check("back-up", "ok", f"whole, {len(there)} entries")
