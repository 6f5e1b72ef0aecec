"""The structured log leaves out whatever is not on its list; files are their owner's."""

import json
import logging
import os
import stat
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedethos.errors import FedethosError
from fedethos.logs import FIELDS, INCIDENTS, JsonLines, incident_log, structured_log, where_it_failed

CANARY = "patient=JANE DOE mrn=12345"
ALWAYS = {"time", "level", "component", "event"}


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def formatted(name: str, message: object, *arguments: object, extra: Mapping[str, object] | None = None) -> dict[str, object]:
    record = logging.getLogger("x").makeRecord(name, logging.INFO, "file", 1, message, arguments, None, extra=dict(extra or {}))
    line: dict[str, object] = json.loads(JsonLines("supervisor").format(record))
    return line


def test_a_line_has_the_event_and_the_listed_fields(tmp_path: Path) -> None:
    with structured_log(tmp_path / "logs/node.jsonl", component="supervisor"):
        extra = {"run": "adult-1a2b3c4d", "round": 3, "code": "AGG-703", "seconds": 1.5, "bytes": 12}
        logging.getLogger("fedethos.client.supervisor").info("reply sent", extra=extra)
    (line,) = lines(tmp_path / "logs/node.jsonl")
    assert line.pop("time", "").endswith("Z")  # type: ignore[attr-defined]
    assert line == {"level": "info", "component": "supervisor", "event": "reply sent", **extra}


def test_what_is_not_on_the_list_is_left_out() -> None:
    line = formatted(
        "fedethos.x", "read %s", CANARY, extra={"row": CANARY, "site": CANARY, "round": CANARY, "code": "AGG-703 x", "bytes": -1}
    )
    assert CANARY not in json.dumps(line)
    assert set(line) == ALWAYS


def test_other_libraries_are_named_and_not_quoted() -> None:
    assert formatted("transformers.tokenization", f"bad input {CANARY}")["event"] == "a message of the library transformers"
    assert formatted("fedethosx", CANARY)["event"] == "a message of the library fedethosx"


def test_an_exception_is_told_by_type_and_place(tmp_path: Path) -> None:
    path = tmp_path / "node.jsonl"
    with structured_log(path, component="worker"):
        for error in (ValueError(CANARY), FedethosError("DATA-121", CANARY)):
            try:
                raise error
            except Exception:
                logging.getLogger("fedethos.x").exception("a request failed")
    assert CANARY not in path.read_text()
    first, second = lines(path)
    assert str(first["failure"]).startswith("builtins.ValueError at test_logs.py:")
    assert second["code"] == "DATA-121"


def test_details_go_to_the_incident_log_alone(tmp_path: Path) -> None:
    structured, details = tmp_path / "node.jsonl", tmp_path / "incidents.log"
    with structured_log(structured, component="worker"), incident_log(details):
        assert not details.exists()
        logging.getLogger(INCIDENTS).error("incident %s", "0badcafe", exc_info=ValueError(CANARY))
        logging.getLogger(f"{INCIDENTS}.training").warning("round %d", 3)
    assert structured.read_text() == ""
    assert "round 3" in details.read_text()
    assert "0badcafe" in details.read_text() and CANARY in details.read_text()
    assert stat.S_IMODE(details.stat().st_mode) == 0o600


def test_without_an_incident_log_the_details_go_nowhere(tmp_path: Path) -> None:
    with structured_log(tmp_path / "node.jsonl", component="worker"):
        logging.getLogger(INCIDENTS).error("incident %s", "0badcafe", exc_info=ValueError(CANARY))
    assert (tmp_path / "node.jsonl").read_text() == ""


def test_files_are_their_owners_and_rotate(tmp_path: Path) -> None:
    path, before = tmp_path / "logs/node.jsonl", os.umask(0)
    try:
        with structured_log(path, component="gateway", most_bytes=1000, kept=2):
            for number in range(60):
                logging.getLogger("fedethos.x").info("request passed", extra={"round": number})
    finally:
        os.umask(before)
    assert sorted(file.name for file in path.parent.iterdir()) == ["node.jsonl", "node.jsonl.1", "node.jsonl.2"]
    assert {stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()} == {0o600}
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert all(file.stat().st_size <= 1000 for file in path.parent.iterdir())
    assert lines(path)[-1]["round"] == 59


def test_an_existing_file_that_others_could_read_is_closed_to_them(tmp_path: Path) -> None:
    path = tmp_path / "node.jsonl"
    path.write_text("")
    path.chmod(0o644)
    with structured_log(path, component="gateway"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_the_logging_of_the_process_is_as_before_afterwards(tmp_path: Path) -> None:
    root = logging.getLogger()
    before = (root.level, list(root.handlers))
    with structured_log(tmp_path / "node.jsonl", component="gateway"), incident_log(tmp_path / "incidents.log"):
        pass
    assert (root.level, list(root.handlers)) == before
    assert logging.getLogger(INCIDENTS).handlers == []


def test_stderr_takes_the_lines_where_no_file_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with structured_log(None, component="gateway"):
        logging.getLogger("fedethos.x").warning("site connected", extra={"site": "uni-a"})
    assert json.loads(capsys.readouterr().err)["site"] == "uni-a"


def test_a_log_that_cannot_be_opened_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FedethosError, match="RUN-980"), structured_log(tmp_path / "file/node.jsonl", component="gateway"):
        pass


@given(st.dictionaries(st.sampled_from([*FIELDS, "row", "note"]), st.text() | st.integers() | st.floats() | st.none() | st.binary()))
def test_no_value_changes_what_a_line_is(fields: dict[str, object]) -> None:
    line = formatted("fedethos.x", "reply sent", extra=fields)
    assert set(line) <= ALWAYS | set(FIELDS)
    for name, value in line.items():
        if name not in ALWAYS:
            assert value == fields[name]
            assert not isinstance(value, str) or (len(value) <= 128 and " " not in value and "\n" not in value)


def test_where_it_failed_has_no_message() -> None:
    try:
        raise KeyError(CANARY)
    except KeyError as error:
        assert CANARY not in where_it_failed(error)
