"""The portal's thread and its process: import, exit, fork. Each in a process of its own."""

from __future__ import annotations

import subprocess
import sys
import textwrap

PREAMBLE = """
import os, sys, threading
from contextlib import asynccontextmanager
import trio
from hivemind_p2p.sync import portal

@asynccontextmanager
async def room(name):
    try:
        yield name
    finally:
        with trio.CancelScope(shield=True):
            await trio.sleep(0.01)
            print("left", name, flush=True)

async def double(number):
    return 2 * number
"""


def run(program: str) -> list[str]:
    """Lines that the program prints; it must end well and say nothing on stderr."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PREAMBLE + textwrap.dedent(program)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def test_importing_starts_nothing():
    assert run("print(threading.active_count())") == ["1"]


def test_what_is_held_at_exit_is_left_in_order():
    program = """
    for name in "abc":
        portal().enter(room(name))
    future = portal().submit(trio.sleep_forever)
    print("end")
    """
    assert run(program) == ["end", "left c", "left b", "left a"]


def test_sys_exit_and_an_error_leave_as_well():
    program = """
    portal().enter(room('a'))
    try:
        raise SystemExit(0)
    finally:
        print('finally')
    """
    assert run(program) == ["finally", "left a"]


def test_what_clings_on_at_exit_is_left_behind():
    program = """
    import hivemind_p2p.sync.portal_thread as module
    module.EXIT_TIMEOUT = 0.01
    module.logger.disabled = True
    async def cling():
        with trio.CancelScope(shield=True):
            await trio.sleep_forever()
    portal().submit(cling)
    print(portal().call(double, 1))
    """
    assert run(program) == ["2"]


def test_a_forked_child_has_a_portal_of_its_own():
    program = """
    import warnings
    warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of forks beside threads
    held = portal().hold(room('a'))
    held.value()
    inherited = portal()
    pending = inherited.submit(trio.sleep_forever)
    child = os.fork()
    if not child:
        for use in (lambda: inherited.call(double, 1), pending.result):
            try:
                use()
            except Exception as error:
                print(type(error).__name__, 'stayed with the parent' in str(error))
        print(held.closed, held.close(), portal().call(double, 21), flush=True)
        sys.exit(0)
    assert os.waitpid(child, 0)[1] == 0
    print(portal() is inherited, held.closed, portal().call(double, 2), flush=True)
    """
    assert run(program) == [
        "NodeClosed True",
        "NodeClosed True",
        "True None 42",
        "True False 4",
        "left a",
    ]


def test_nodes_left_open_at_exit_and_in_a_forked_child():
    program = """
    import warnings
    import hivemind_p2p
    from hivemind_p2p.errors import NodeClosed
    from hivemind_p2p.dht import get_dht_time
    warnings.simplefilter("ignore", DeprecationWarning)
    here = ["/ip4/127.0.0.1/tcp/0"]
    first = hivemind_p2p.DHT(start=True, host_maddrs=here)
    second = hivemind_p2p.DHT(first.get_visible_maddrs(), start=True, host_maddrs=here)
    child = os.fork()
    if not child:
        assert not first.is_alive()
        try:
            first.get("key")
        except NodeClosed as error:
            print("forked" in str(error))
        first.shutdown()
        with hivemind_p2p.DHT(start=True, host_maddrs=here) as own:
            print(own.store("key", 1, get_dht_time() + 60))
        sys.exit(0)
    assert os.waitpid(child, 0)[1] == 0
    print(first.store("key", 2, get_dht_time() + 60), second.get("key").value)
    """
    assert run(program) == ["True", "True", "True 2"]
