"""Commands run in this process, which see only the nodes that the same test started."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from hivemind_p2p.cli import app as cli


@dataclass
class Done:
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def command(monkeypatch, tmp_path_factory, capsys) -> Callable[..., Done]:
    """``command("peers", "--json")``: run it to its end."""
    monkeypatch.setenv("HIVEMIND_P2P_CONTROL__DIRECTORY", str(tmp_path_factory.mktemp("c") / "nodes"))

    def run(*arguments: str) -> Done:
        with pytest.raises(SystemExit) as exit_:
            cli.main(list(arguments))
        return Done(exit_.value.code, *capsys.readouterr())

    return run
