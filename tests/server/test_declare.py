from __future__ import annotations

import pytest
import trio

from hivemind_p2p.dht import get_dht_time
from hivemind_p2p.errors import InvalidRecord, InvalidUID
from hivemind_p2p.kademlia import ValueWithExpiration
from hivemind_p2p.server.declare import declaration, declare_experts, store_records, withdraw_experts, withdrawal
from hivemind_p2p.sync import DHT
from hivemind_p2p.wire.peer_id import PeerID
from tests.dht.swarm import now

US, THEM = (PeerID(b"\x00\x24\x08\x01\x12\x20" + bytes([n]) * 32) for n in (1, 2))
us, them = US.base58, THEM.base58


def test_what_is_stored_where():
    assert declaration(["a.3.7", "b.5"], US, {"b.5": 12}) == {
        ("a.3.7@replicas", us): {"updates": 0},
        ("b.5@replicas", us): {"updates": 12},
        ("a.3.7", None): us,
        ("a.3.", 7): ("a.3.7", us),
        ("a.", 3): ("a.3.7", us),
        ("b.5", None): us,
        ("b.5.", -1): ("b.5", us),
        ("b.", 5): ("b.5", us),
    }


def found(*declared):
    """What the DHT holds after these (records, expiration time), later ones over earlier ones."""
    state = {}
    for records, expires in declared:
        for (key, subkey), value in records.items():
            if subkey is None:
                state[key] = ValueWithExpiration(value, expires)
            else:
                entries = state.setdefault(key, ValueWithExpiration({}, expires)).value
                entries[subkey] = ValueWithExpiration(value, expires)
    return state


def withdrawn(uids, *declared):
    over = withdrawal(declaration(uids, US), found(*declared), US)
    assert all(later.expiration_time == pytest.approx(10.001, abs=1e-6) for later in over.values())
    return {place: later.value for place, later in over.items()}


def test_alone_everything_is_withdrawn():
    ours = declaration(["a.3.7", "a.3.8", "b.5"], US)
    assert withdrawn(["a.3.7", "a.3.8", "b.5"], (ours, 10)) == dict.fromkeys(ours)


def test_what_others_have_declared_since_stays():
    ours, theirs = declaration(["a.3.7"], US), declaration(["a.3.7"], THEM)
    assert withdrawn(["a.3.7"], (ours, 10), (theirs, 20)) == {("a.3.7@replicas", us): None}


def test_a_replica_that_lives_on_gets_the_place_of_the_one_that_leaves():
    ours, theirs = declaration(["a.3.7", "b.5"], US), declaration(["a.3.7", "b.5"], THEM)
    assert withdrawn(["a.3.7"], (theirs, 9), (ours, 10)) == {
        ("a.3.7@replicas", us): None,
        ("a.3.7", None): them,
        ("a.3.", 7): ("a.3.7", them),
        ("a.", 3): ("a.3.7", them),
    }
    garbage = {("a.3.7@replicas", 7): {}, ("a.3.7@replicas", them): None}
    assert withdrawn(["a.3.7"], (ours, 10), (garbage, 20))["a.3.7", None] is None


def test_a_row_in_which_others_live_is_given_to_one_of_them():
    theirs = declaration(["a.3.8"], THEM)
    assert withdrawn(["a.3.7"], (theirs, 20), (declaration(["a.3.7"], US), 10)) == {
        ("a.3.7@replicas", us): None,
        ("a.3.7", None): None,
        ("a.3.", 7): None,
        ("a.", 3): ("a.3.8", them),
    }


def test_the_place_is_passed_up_through_every_axis():
    theirs = declaration(["a.1.2.9"], THEM)
    over = withdrawn(["a.1.2.3", "a.1.5.5"], (theirs, 20), (declaration(["a.1.5.5", "a.1.2.3"], US), 10))
    assert over["a.1.", 2] == ("a.1.2.9", them)
    assert over["a.", 1] == ("a.1.2.9", them)
    assert over["a.1.", 5] is None
    assert over["a.1.2.", 3] is None


def test_our_other_experts_stay():
    ours = declaration(["a.3.7", "a.4.4", "a.3.8"], US)
    assert withdrawn(["a.3.8"], (ours, 10)) == {
        ("a.3.8@replicas", us): None,
        ("a.3.8", None): None,
        ("a.3.", 8): None,
        ("a.", 3): ("a.3.7", us),
    }


def test_what_is_gone_or_garbage_is_left_alone():
    assert withdrawal(declaration(["a.3.7"], US), {"a.3.7": None}, US) == {}
    garbage = [({("a.3.", 7): ["a.3.7", us], ("a.", 3): ("no uid", us), ("a.", "x"): 5, ("a.3.7", None): 5}, 10)]
    assert withdrawn(["a.3.7"], *garbage) == {}
    no_dictionaries = {"a.3.": ValueWithExpiration("text", 10), "a.": ValueWithExpiration(5, 10)}
    assert withdrawal(declaration(["a.3.7"], US), no_dictionaries, US) == {}
    value = {7: 5, 3: ("a.3.7", us), them: {"updates": 9}, us: 1}  # one value, in the place of one with subkeys
    values = {key: ValueWithExpiration(value, 10) for key in ("a.3.", "a.", "a.3.7@replicas")}
    assert withdrawal(declaration(["a.3.7"], US), values, US) == {}


async def test_in_a_swarm(swarm, autojump_clock):
    await swarm.grow(8)
    server, other, reader = swarm.nodes[1:4]
    peers = {node: node.protocol.network.peer_id for node in swarm.nodes}

    async def look_up(key):
        found = await reader.get(key, latest=True)
        if found is None or not isinstance(found.value, dict):
            return found and found.value
        return {coordinate: entry.value for coordinate, entry in found.value.items()}

    ours = declaration(["ffn.3.7", "ffn.4.4"], peers[server])
    stored = await store_records(server, ours, now() + 60)
    assert stored == dict.fromkeys(["ffn.3.7", "ffn.4.4", *(place for place in ours if place[1] is not None)], True)
    await trio.sleep(10)
    await store_records(other, declaration(["ffn.3.8"], peers[other]), now() + 60)
    assert await look_up("ffn.3.7") == peers[server].base58
    assert await look_up("ffn.3.") == {
        7: ("ffn.3.7", peers[server].base58),
        8: ("ffn.3.8", peers[other].base58),
    }

    withdrawn = await withdraw_experts(server, ["ffn.3.7", "ffn.4.4"], peers[server])
    replicas = {(f"{uid}@replicas", peers[server].base58) for uid in ("ffn.3.7", "ffn.4.4")}
    assert set(withdrawn) == {"ffn.3.7", "ffn.4.4", ("ffn.3.", 7), ("ffn.4.", 4), ("ffn.", 4), *replicas}
    assert all(withdrawn.values())
    assert await look_up("ffn.3.7") is None
    assert await look_up("ffn.3.") == {7: None, 8: ("ffn.3.8", peers[other].base58)}
    assert await look_up("ffn.") == {3: ("ffn.3.8", peers[other].base58), 4: None}

    await trio.sleep(1)
    takeover = declaration(["ffn.3.7"], peers[other])
    assert all((await store_records(other, takeover, now() + 60)).values())
    assert await look_up("ffn.3.7") == peers[other].base58
    assert await withdraw_experts(server, ["ffn.3.7"], peers[server]) == {}


async def test_what_is_about_to_expire_is_not_withdrawn(swarm, autojump_clock):
    node = await swarm.node()
    peer = node.protocol.network.peer_id
    await store_records(node, declaration(["ffn.0"], peer), now() + 0.5)
    assert await withdraw_experts(node, ["ffn.0"], peer) == {}
    assert await store_records(node, {}, now() + 1) == {}


def test_declare_experts():
    with DHT(start=True, host_maddrs=["/ip4/127.0.0.1/tcp/0"]) as dht:
        expires = get_dht_time() + 60
        declared = ["ffn.0", ("ffn.", 0), ("ffn.0.", -1), ("ffn.0@replicas", dht.peer_id.base58)]
        assert declare_experts(dht, ["ffn.0"], expires) == dict.fromkeys(declared, True)
        assert declare_experts(dht, ["ffn.1"], expires, wait=False).result()["ffn.1"]
        assert dht.get("ffn.0") == (dht.peer_id.base58, expires)
        assert dht.get("ffn.").value == {n: (((f"ffn.{n}"), dht.peer_id.base58), expires) for n in range(2)}
        with pytest.raises(InvalidUID, match="like ffn"):
            declare_experts(dht, ["ffn"], expires)
        with pytest.raises(InvalidUID, match=r"write \['ffn.0'\]"):
            declare_experts(dht, "ffn.0", expires)
        with pytest.raises(InvalidRecord):
            declare_experts(dht, ["ffn.0"], get_dht_time() - 1)
