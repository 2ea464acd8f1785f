"""A program that moves from hivemind to hivemind_p2p may load both: their messages do not clash."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.interop.conftest import HivemindPeer

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "hivemind_p2p/wire").glob("*_pb2.py")))
async def test_our_messages_load_beside_hiveminds(hivemind: HivemindPeer, name: str):
    loaded = await hivemind.do("import_module", path=str(ROOT), name=f"hivemind_p2p.wire.{name}")
    assert loaded == f"hivemind_p2p.wire.{name}"
