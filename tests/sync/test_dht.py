"""``DHT``: real nodes on loopback, used from this thread."""

from __future__ import annotations

import gc
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import trio

from hivemind_p2p import DHT, DHTNode, Node
from hivemind_p2p.config import DHTSettings, Settings
from hivemind_p2p.dht import get_dht_time
from hivemind_p2p.errors import BootstrapError, ConfigError, ListenError, NodeClosed, WouldDeadlock
from hivemind_p2p.sync import portal

LOOPBACK = ["/ip4/127.0.0.1/tcp/0"]


@pytest.fixture(scope="module")
def first():
    with DHT(start=True, host_maddrs=LOOPBACK) as dht:
        yield dht


@pytest.fixture(scope="module")
def second(first):
    with DHT(first.get_visible_maddrs(), start=True, host_maddrs=LOOPBACK) as dht:
        yield dht


def test_store_and_get(first, second):
    expires = get_dht_time() + 60
    assert first.store("key", [1, "two", b"3"], expires) is True
    assert second.get("key") == ([1, "two", b"3"], expires)
    assert second.get("key", latest=True).value == [1, "two", b"3"]
    assert second.get("nobody stored this") is None
    assert first.store("key", "older", expires - 1) is False
    assert first.store("grid.", "a", expires, subkey=1, exclude_self=True)
    assert second.store("grid.", "b", expires, 2)
    assert first.get("grid.", latest=True).value == {1: ("a", expires), 2: ("b", expires)}


def test_futures(first, second):
    expires = get_dht_time() + 60
    stores = [first.store(f"future {n}", n, expires, return_future=True) for n in range(5)]
    assert all(store.result() for store in stores)
    gets = [second.get(f"future {n}", return_future=True) for n in range(5)]
    assert [get.result().value for get in gets] == list(range(5))


def test_many_threads(first, second):
    expires = get_dht_time() + 60

    def there_and_back(n):
        dht, other = (first, second) if n % 2 else (second, first)
        assert dht.store(f"thread {n}", n, expires)
        return other.get(f"thread {n}").value

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(there_and_back, range(16))) == list(range(16))


def test_run_coroutine(first):
    async def inside(dht, node):
        assert dht is first
        assert isinstance(node, DHTNode)
        assert dht.peer_id == dht.node.peer_id
        with pytest.raises(WouldDeadlock):
            dht.get("key")
        await node.store("inside", 1, get_dht_time() + 60)
        return (await node.get("inside")).value

    assert first.run_coroutine(inside) == 1
    assert first.run_coroutine(inside, return_future=True).result() == 1

    async def forever(dht, node):
        await trio.sleep_forever()

    assert first.run_coroutine(forever, return_future=True).cancel()

    async def fail(dht, node):
        raise LookupError("inside")

    with pytest.raises(LookupError, match="inside"):
        first.run_coroutine(fail)


def test_who_and_where(first, second):
    [maddr] = first.get_visible_maddrs()
    assert str(maddr).startswith("/ip4/127.0.0.1/tcp/")
    assert str(maddr).endswith(f"/p2p/{first.peer_id}")
    assert isinstance(first.node, Node)
    assert first.is_alive()
    assert not first.client_mode
    assert repr(first) == f"<DHT of {first.node!r}>"
    assert first.peer_id.base58[-8:] in repr(first)
    with DHT(first.get_visible_maddrs(latest=True), start=True, client_mode=True) as client:
        assert client.client_mode
        assert client.get_visible_maddrs() == []


def test_started_later_and_shut_down():
    dht = DHT(start=False, host_maddrs=LOOPBACK)
    assert repr(dht) == "<DHT, not started>"
    assert not dht.is_alive()
    dht.shutdown()
    dht.join()
    for use in (lambda: dht.get("key"), lambda: dht.peer_id, dht.wait_until_ready):
        with pytest.raises(NodeClosed, match="run_in_background"):
            use()
    dht.run_in_background(await_ready=False)
    assert dht.is_alive()
    assert dht.store("waits until it is ready", 1, get_dht_time() + 60)
    with pytest.raises(NodeClosed, match="started before"):
        dht.run_in_background()
    peer_id = dht.peer_id
    threading.Timer(0.01, dht.shutdown).start()
    dht.join(timeout=10)
    assert not dht.is_alive()
    assert repr(dht) == "<DHT, shut down>"
    assert dht.peer_id == peer_id
    with pytest.raises(NodeClosed, match="was shut down"):
        dht.get("key")
    dht.shutdown()


def test_who_it_was_is_known_after_it_was_shut_down():
    with DHT(start=True, host_maddrs=LOOPBACK) as first, DHT(start=False, host_maddrs=LOOPBACK) as second:
        peer_ids = [str(maddr).rpartition("/")[2] for dht in (first, second) for maddr in dht.get_visible_maddrs()[:1]]
    assert [first.peer_id.base58, second.peer_id.base58] == peer_ids
    with DHT(start=True, host_maddrs=LOOPBACK) as unused:
        pass
    assert unused.peer_id.base58.startswith("12D3Koo")


def test_a_forgotten_dht_leaves_the_swarm():
    dht = DHT(start=True, host_maddrs=LOOPBACK)
    held = dht._held
    del dht
    gc.collect()
    assert held.wait_closed(10)


def test_nobody_there():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        nobody = f"/ip4/127.0.0.1/tcp/{port}/p2p/12D3KooWGRUKGW7mDAjHXwVCHdVtMXLxVyMhLbfSXqfKy7rnWhVz"
        with pytest.raises(BootstrapError):
            DHT([nobody], start=True, host_maddrs=LOOPBACK)
    dht = DHT([nobody], start=True, host_maddrs=LOOPBACK, await_ready=False)
    with pytest.raises(BootstrapError):
        dht.get("key")
    with pytest.raises(BootstrapError):
        dht.wait_until_ready()
    assert not dht.is_alive()
    dht.shutdown()


def test_a_port_in_use(first):
    [maddr] = first.get_visible_maddrs()
    taken = str(maddr).partition("/p2p/")[0]
    with pytest.raises(ListenError, match=taken):
        DHT(start=True, host_maddrs=[taken])
    with pytest.raises(ConfigError, match="give a list"):
        DHT(taken, start=True)


def test_options_of_hivemind():
    quick = Settings(dht=DHTSettings(wait_timeout=1.5, num_replicas=3))
    options = {"num_workers": 7, "cache_locally": False, "refresh_timeout": None, "announce_maddrs": None}
    dht = DHT(start=False, num_replicas=2, settings=quick, **options)
    assert dht._started_later.settings.dht == DHTSettings(
        alpha=7, cache_locally=False, num_replicas=2, wait_timeout=1.5
    )
    with pytest.raises(ConfigError, match=r"at most dht\.bucket_size"):
        DHT(start=False, num_replicas=100)


@pytest.mark.parametrize(
    ("option", "text"),
    [
        ("daemon", r"DHT\(daemon=...\) has no meaning here: the node runs in this process"),
        ("use_relay", "libp2p's Go daemon"),
        ("ensure_bootstrap_success", "catch that"),
        ("num_replica", "did you mean num_replicas"),
        ("identity", "did you mean identity_path"),
        ("xyz", "is unknown; see"),
    ],
)
def test_options_without_meaning(option, text):
    with pytest.raises(ConfigError, match=text):
        DHT(start=False, **{option: True})


def test_an_error_in_the_node_ends_only_it(first, caplog):
    class BrokenNode(Node):
        async def __aexit__(self, *args):
            await super().__aexit__(*args)
            raise LookupError("cannot leave")

    dht = DHT(start=False, host_maddrs=LOOPBACK)
    dht._started_later = BrokenNode(host_maddrs=LOOPBACK)
    dht.run_in_background()
    with pytest.raises(LookupError, match="cannot leave"):
        dht.shutdown()
    assert not dht.is_alive()
    assert first.is_alive()


def test_shutdown_is_bounded(caplog):
    class SlowNode(Node):
        async def __aexit__(self, *args):
            try:
                await trio.sleep_forever()
            finally:
                await super().__aexit__(*args)

    dht = DHT(start=False, shutdown_timeout=0.01)
    dht._started_later = SlowNode(host_maddrs=LOOPBACK)
    dht.run_in_background()
    dht.shutdown()
    assert not dht.is_alive()
    assert "not enough to end cleanly" in caplog.text
    assert portal().call(trio.sleep, 0) is None
