"""Network namespaces: the rooms that a lab is built of. Linux, root, iproute2 and nftables needed.

Nothing here touches the machine's own network: both ends of every link are in namespaces of the lab.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import socket
import subprocess
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.nat.lab.lab import Site

_libc = ctypes.CDLL(None, use_errno=True)
_CLONE_NEWNET = 0x40000000


def why_unavailable() -> str:
    """Why no lab can be built here; empty when one can."""
    missing = [tool for tool in ("ip", "nft") if shutil.which(tool) is None]
    if missing:
        return f"needs {' and '.join(missing)} (Debian: apt-get install iproute2 nftables)"
    if os.geteuid() != 0:
        return "needs root"
    name = f"nlprobe-{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
    if made.returncode:
        return f"needs network namespaces: {made.stderr.strip()}"
    subprocess.run(["ip", "netns", "del", name], capture_output=True)
    return ""


def sh(*cmd: str, check: bool = True, stdin: str | None = None) -> str:
    done = subprocess.run(cmd, capture_output=True, text=True, input=stdin)
    if check and done.returncode:
        raise RuntimeError(f"{' '.join(cmd)}: {done.stderr.strip()}{done.stdout.strip()}")
    return done.stdout


@contextmanager
def in_netns(ns: str):
    """The calling THREAD is in the namespace inside the block; sockets and tap files made there stay in it."""
    with open("/proc/thread-self/ns/net") as home, open(f"/run/netns/{ns}") as there:
        if _libc.setns(there.fileno(), _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"setns {ns}")
        try:
            yield
        finally:
            if _libc.setns(home.fileno(), _CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "setns home")


def enter(ns: str) -> None:
    """Move the calling thread into a namespace for good."""
    with open(f"/run/netns/{ns}") as there:
        if _libc.setns(there.fileno(), _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"setns {ns}")


@dataclass
class Host:
    name: str
    ns: str
    ip: str
    site: Site | None = None

    def argv(self, cmd: Sequence[str]) -> list:
        return ["ip", "netns", "exec", self.ns, *map(str, cmd)]

    def run(self, cmd: Sequence[str], **kw) -> subprocess.CompletedProcess:
        return subprocess.run(self.argv(cmd), **kw)

    def popen(self, cmd: Sequence[str], **kw) -> subprocess.Popen:
        return subprocess.Popen(self.argv(cmd), **kw)

    def socket(self, type_: int, port: int = 0, reuse: bool = True, timeout: float = 1.0) -> socket.socket:
        """A socket of this host's namespace, usable from this process."""
        with in_netns(self.ns):
            sock = socket.socket(socket.AF_INET, type_)
        if reuse:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.settimeout(timeout)
        sock.bind((self.ip, port))
        return sock

    def nft(self, ruleset: str) -> None:
        sh("ip", "netns", "exec", self.ns, "nft", "-f", "-", stdin=ruleset)
