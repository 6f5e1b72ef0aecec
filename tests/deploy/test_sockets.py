"""Whole runs that reach loopback and nothing else: asked of Python's audit events in every process, and of the kernel.

Everything since the stack came up counts: all runs before these tests, and one at least.
"""

from __future__ import annotations

import ast
import subprocess
import sys

import psutil
import pytest
from tests.deploy.network import listens
from tests.deploy.stack import SITES

pytestmark = pytest.mark.xdist_group("deploy")

HERE = {"127.0.0.1", "localhost", "::1"}
KNOCK = "import socket; socket.create_connection(('192.0.2.1', 9), 1)"


def test_every_process_names_this_machine_alone(stack, undisturbed):
    seen = [(program, event, ast.literal_eval(address)) for program, event, address in stack.sockets()]
    nodes = {program for program, event, _ in seen if "client start" in program and event == "socket.connect"}
    assert len(nodes) >= len(SITES) and any(event == "socket.bind" for program, event, _ in seen if "superlink" in program)
    for program, event, address in seen:
        host = address[0] if isinstance(address, tuple) else address
        assert host is None or host in HERE or str(host).startswith("/"), (program, event, address)  # or a path: a Unix socket


def test_the_kernel_saw_no_attempt_to_leave_loopback(stack, undisturbed):
    """Also of code that is not Python: gRPC's core, the event loop, the resolver."""
    if not stack.network.isolated:
        pytest.skip("this user may not make a network namespace (unshare --map-root-user --net)")
    assert stack.network.attempts() == 0
    knock = subprocess.run([*stack.network.prefix, sys.executable, "-S", "-c", KNOCK], capture_output=True, text=True, check=False)
    assert "Network is unreachable" in knock.stderr and stack.network.attempts() == 1
    stack.network.forgive()


def test_nodes_listen_nowhere(stack, undisturbed):
    assert listens(stack.processes["relay"].pid)  # the check sees a socket that listens
    for site in SITES:
        node = psutil.Process(stack.processes[site].pid)
        assert not any(listens(process.pid) for process in (node, *node.children(recursive=True)))
