"""The names of the package itself: loaded when they are used, with the garbage collector as it was before."""

from __future__ import annotations

import gc
import subprocess
import sys

import pytest

import hivemind_p2p


@pytest.fixture
def collector():
    enabled = gc.isenabled()
    yield
    gc.unfreeze()
    (gc.enable if enabled else gc.disable)()


def test_every_name_is_there():
    assert all(callable(getattr(hivemind_p2p, name)) for name in hivemind_p2p.__all__)
    assert set(hivemind_p2p.__all__) < set(dir(hivemind_p2p))


def test_nothing_is_collected_while_a_name_is_loaded():
    program = """
import gc, hivemind_p2p
collections = []
gc.callbacks.append(lambda phase, info: collections.append(phase))
hivemind_p2p.Node
assert collections == [] and gc.isenabled() and gc.get_freeze_count() == 0
old = {id(each) for each in gc.get_objects(generation=2)}
assert id(hivemind_p2p.Node) in old  # so it will not be looked at soon
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_who_disabled_the_collector_or_froze_objects_finds_it_so(collector):
    gc.disable()
    hivemind_p2p.__getattr__("PeerID")
    assert not gc.isenabled()
    gc.enable()
    gc.freeze()
    frozen = gc.get_freeze_count()
    hivemind_p2p.__getattr__("PeerID")
    assert gc.isenabled()
    assert gc.get_freeze_count() > frozen / 2  # some may be gone: nobody needs them


def test_a_name_that_is_not_there(collector):
    with pytest.raises(AttributeError, match=r"no attribute 'Nod'; it offers DHT, "):
        hivemind_p2p.Nod  # noqa: B018  # asking is the test
    assert gc.isenabled()
