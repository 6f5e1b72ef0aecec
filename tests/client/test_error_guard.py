"""What leaves for a failure: a code of a fixed list and a random number, and no fact about records."""

import pytest

from fedethos.client.error_guard import LEAVING, UNKNOWN, error_reply, leaving_code
from fedethos.errors import FedethosError


@pytest.mark.parametrize(
    "failure",
    [
        ValueError("could not convert string to float: 'JANE DOE'"),
        FedethosError("DATA-121", "37 rows have a value in a column"),
        FedethosError("DATA-131", "The train split holds nobody."),
        FedethosError("NODE-510", "Training diverged: an adapter value is not finite."),
        FedethosError("JANE DOE", "a code that is none"),
        KeyboardInterrupt(),
        MemoryError(),
    ],
)
def test_what_depends_on_records_or_is_not_known_leaves_as_one_code(failure: BaseException) -> None:
    assert leaving_code(failure) == UNKNOWN


def test_what_follows_from_the_request_leaves_as_it_is() -> None:
    for code in ("SEC-610", "SEC-611", "SEC-634", "PRIV-310", "NODE-530"):
        assert leaving_code(FedethosError(code, "what", where="a path")) == code


def test_no_code_about_records_is_on_the_list() -> None:
    """Which of several things is wrong with records is itself a fact about them; so is how training went."""
    assert not any(code.startswith(("DATA-", "CFG-", "RUN-", "NET-")) for code in LEAVING)
    assert not LEAVING & {"NODE-510", "NODE-520", "NODE-521"}


def test_incidents_are_random() -> None:
    incidents = {error_reply(ValueError()).incident for _ in range(100)}
    assert len(incidents) == 100 and all(len(incident) == 16 for incident in incidents)
