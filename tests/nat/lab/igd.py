"""A home router that forwards ports for who asks: miniupnpd, which many of them run, in a site's router."""

from __future__ import annotations

import subprocess
import tempfile
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.nat.lab.lab import Site

_CHAINS = """
table inet filter {
 chain miniupnpd { }
 chain prerouting_miniupnpd { }
 chain postrouting_miniupnpd { }
 chain prerouting { type nat hook prerouting priority -110; jump prerouting_miniupnpd; }
}
"""


@contextmanager
def forwarding(site: Site, *, natpmp: bool, upnp: bool) -> Iterator[None]:
    """Inside the block the site's router speaks NAT-PMP, UPnP or both to its hosts. (The site's own rules let in what
    was forwarded.)"""
    router = site.router
    router.nft(_CHAINS)
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder, "miniupnpd.conf")
        yes = {True: "yes", False: "no"}
        config.write_text(
            f"ext_ifname=wan\nlistening_ip=lan\nport=5431\nenable_natpmp={yes[natpmp]}\nenable_upnp={yes[upnp]}\n"
            f"uuid={uuid.uuid4()}\nsecure_mode=yes\nnotify_interval=60\n"
            "allow 1024-65535 0.0.0.0/0 1024-65535\ndeny 0-65535 0.0.0.0/0 0-65535\n"
        )
        command = ["miniupnpd", "-d", "-f", str(config), "-P", str(Path(folder, "pid"))]
        with router.popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
            try:
                _wait_until_ready(process, "NAT-PMP" if natpmp else "HTTP listening")
                threading.Thread(target=process.stderr.read, daemon=True).start()  # it says much
                yield
            finally:
                process.kill()


def forwarded(site: Site) -> str:
    """What the router forwards, as nft says it."""
    rules = site.router.run(["nft", "list", "chain", "inet", "filter", "prerouting_miniupnpd"], capture_output=True)
    return rules.stdout.decode()


def _wait_until_ready(process: subprocess.Popen[str], text: str) -> None:
    heard = []
    for line in process.stderr:  # -d: it stays, and says on stderr what it does
        heard.append(line)
        if "istening" in line and text in line:
            return
    raise RuntimeError(f"miniupnpd ended with {process.wait()}: {''.join(heard)}")
