"""A whole run, all processes watched by Python's audit events: who connects where. What listens is asked of the kernel."""

import ast

import psutil
import pytest
from tests.deploy.stack import SEEDED, SITES, job_of

pytestmark = pytest.mark.xdist_group("deploy")

HERE = {"127.0.0.1", "localhost", "::1"}


def test_a_run_connects_to_this_machine_alone_and_nodes_listen_nowhere(stack) -> None:
    stack.run_to_end(job_of("quiet", rounds=1, privacy=SEEDED))
    seen = [(program, event, ast.literal_eval(address)) for program, event, address in stack.sockets()]
    nodes = {program for program, event, _ in seen if "client start" in program and event == "socket.connect"}
    assert len(nodes) == len(SITES) and any(event == "socket.bind" for program, event, _ in seen if "superlink" in program)
    for program, event, address in seen:
        host = address[0] if isinstance(address, tuple) else address
        assert host is None or host in HERE or str(host).startswith("/"), (program, event, address)  # or a path: a Unix socket
    for site in SITES:
        node = psutil.Process(stack.processes[site].pid)
        for process in (node, *node.children(recursive=True)):
            assert not [one for one in process.net_connections(kind="inet") if one.status == psutil.CONN_LISTEN]
