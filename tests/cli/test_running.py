import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from hivemind_p2p.cli.running import run_until_stopped

SERVING = """
import sys, trio
from hivemind_p2p.cli.running import run_until_stopped

async def serve():
    try:
        print("ready", flush=True)
        await trio.sleep_forever()
    finally:
        with trio.CancelScope(shield=True):
            print("stopping", flush=True)
            if sys.argv[1] == "stuck":
                await trio.sleep_forever()

run_until_stopped(serve)
print("stopped")
"""


@pytest.fixture
def serving(request) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen([sys.executable, "-c", SERVING, request.param], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        yield process
        process.kill()


@pytest.mark.parametrize("serving", ["willing"], indirect=True)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_it_cleanly(serving, number):
    serving.send_signal(number)
    assert serving.stdout.read() == "stopping\nstopped\n"
    assert serving.wait(timeout=10) == 0


@pytest.mark.parametrize("serving", ["stuck"], indirect=True)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_ends_it_at_once(serving, number):
    serving.send_signal(signal.SIGTERM)
    assert serving.stdout.readline() == "stopping\n"
    serving.send_signal(number)
    assert serving.wait(timeout=10) == 128 + number


def test_it_returns_when_there_is_nothing_more_to_serve():
    served = []

    async def serve() -> None:
        served.append(True)

    run_until_stopped(serve)
    assert served == [True]
