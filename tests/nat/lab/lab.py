"""A lab: one simulated internet (a flat public /24) with public hosts and sites behind NATs on it.

::

    with Lab("x", delay_ms=10) as lab:
        relay = lab.public("relay")
        a = lab.site("a", "port-restricted")          # a.host, a.router, a.public_ip
        b = lab.site("b", "symmetric", hosts=2)       # two hosts behind one NAT: b.hosts[0], b.hosts[1]
        b.host.run(["ping", "-c1", relay.ip])
        print(probe(lab, a))                          # what the NAT really does

The public /24 defaults to addresses that libraries take for globally routable (the documentation ranges are classed as
unroutable, which changes what nodes announce).
"""

from __future__ import annotations

import itertools
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.nat.lab.kinds import KINDS, nat_rules
from tests.nat.lab.namespaces import Host, in_netns, sh
from tests.nat.lab.switch import TapSwitch

PREFIX = "nl"


@dataclass
class Site:
    name: str
    kind: str
    public_ip: str
    hosts: list
    routers: list

    @property
    def host(self) -> Host:
        return self.hosts[0]

    @property
    def router(self) -> Host | None:
        return self.routers[0] if self.routers else None


@dataclass
class Carrier:
    router: Host
    network: str
    """The first three bytes of the addresses of its customers."""
    homes: int = 0


class Lab:
    """delay_ms: one-way delay of each endpoint's access link (a path crosses two). With any delay, loss or rate the
    public switch is a userspace process part of this program; without, it is a kernel bridge."""

    def __init__(
        self, tag: str = "0", public_net: str = "44.44.44", delay_ms: float = 0, loss: float = 0, rate_mbit: float = 0
    ):
        self.tag, self.net3 = tag, public_net
        self.delay_ms, self.loss, self.rate_mbit = delay_ms, loss, rate_mbit
        self.prefix = f"{PREFIX}{tag}-"
        self.hosts: dict[str, Host] = {}
        self.sites: dict[str, Site] = {}
        self.namespaces: list[str] = []
        self._ports: dict[str, int] = {}
        self._ips = itertools.count(10)
        self._lans = itertools.count(1)
        self._links = itertools.count(1)
        self.switch: TapSwitch | None = (
            TapSwitch(loss=loss, rate_mbit=rate_mbit) if (delay_ms or loss or rate_mbit) else None
        )
        try:
            self._ns("inet")
            if self.switch is None:
                self._ip("inet", "link add br0 type bridge")
                self._ip("inet", "link set br0 up")
        except BaseException:
            self.close()
            raise

    # -- building blocks
    def _ns(self, name: str) -> str:
        ns = self.prefix + name
        sh("ip", "netns", "add", ns)
        self.namespaces.append(ns)
        self._ip(name, "link set lo up")
        with in_netns(ns):  # /proc/sys/net shows the reader's namespace
            for key, value in (
                ("ipv4/ip_forward", "0"),
                ("ipv6/conf/all/disable_ipv6", "1"),
                ("ipv4/ip_local_port_range", "20000 29999"),
            ):
                Path("/proc/sys/net", key).write_text(value)
        return ns

    def _ip(self, name: str, args: str) -> str:
        return sh("ip", "-n", self.prefix + name, *args.split())

    def _veth(self, ns_a: str, dev_a: str, ns_b: str, dev_b: str) -> None:
        """Both ends are made inside namespaces: nothing appears in the machine's own."""
        sh(
            "ip",
            "-n",
            self.prefix + ns_a,
            "link",
            "add",
            dev_a,
            "type",
            "veth",
            "peer",
            "name",
            dev_b,
            "netns",
            self.prefix + ns_b,
        )
        self._ip(ns_a, f"link set {dev_a} up")
        self._ip(ns_b, f"link set {dev_b} up")

    def _uplink(self, name: str, delay_ms: float | None) -> str:
        """Gives namespace `name` a device `wan` on the public switch, with a new public address."""
        ip = f"{self.net3}.{next(self._ips)}"
        if self.switch is not None:
            delay_ms = self.delay_ms if delay_ms is None else delay_ms
            self._ports[name] = self.switch.add(self.prefix + name, "wan", delay_ms)
            self._ip(name, "link set wan up")
        else:
            port = f"p{next(self._links)}"
            self._veth(name, "wan", "inet", port)
            self._ip("inet", f"link set {port} master br0")
        self._ip(name, f"addr add {ip}/24 dev wan")
        return ip

    def public(self, name: str, delay_ms: float | None = None) -> Host:
        host = Host(name, self._ns(name), "")
        host.ip = self._uplink(name, delay_ms)
        self.hosts[name] = host
        return host

    def site(self, name: str, kind: str, hosts: int = 1, delay_ms: float | None = None, lan: int | None = None) -> Site:
        """lan: the third byte of its private network; by default another one for each site."""
        if kind not in KINDS:
            raise ValueError(f"unknown NAT kind {kind!r}; one of {', '.join(KINDS)}")
        if kind in ("none", "firewalled"):
            host = self.public(name, delay_ms)
            if kind == "firewalled":
                host.nft(
                    "table inet fw { chain inbound { type filter hook input priority 0; policy drop; "
                    "iifname lo accept; ct state established,related accept; }; }\n"
                )
            site = Site(name, kind, host.ip, [host], [])
        elif kind.startswith("cgnat"):
            carrier = self.carrier(f"{name}-cgn", kind.partition("-")[2] or "port-restricted", delay_ms)
            site = self.home(name, carrier, hosts=hosts, lan=lan)
            site.kind = kind
        else:
            self._ns(f"{name}-rt")
            public_ip = self._uplink(f"{name}-rt", delay_ms)
            router = Host(f"{name}-rt", self.prefix + f"{name}-rt", public_ip)
            site = Site(name, kind, public_ip, self._behind(name, hosts, lan), [router])
            self._nat(router, kind)
        for host in site.hosts:
            host.site = site
            self.hosts[host.name] = host
        self.sites[name] = site
        return site

    def carrier(self, name: str, kind: str, delay_ms: float | None = None) -> Carrier:
        """The NAT of a provider, in front of the homes of its customers."""
        self._ns(name)
        router = Host(name, self.prefix + name, self._uplink(name, delay_ms))
        carrier = Carrier(router, f"100.64.{next(self._lans)}")
        self._lan(name, f"{carrier.network}.1/24")
        self._nat(router, kind)
        return carrier

    def home(self, name: str, carrier: Carrier, hosts: int = 1, lan: int | None = None) -> Site:
        """A port-restricted NAT behind a carrier's."""
        carrier.homes += 1
        router = Host(f"{name}-rt", self._ns(f"{name}-rt"), f"{carrier.network}.{carrier.homes + 1}")
        self._join(router.name, "wan", carrier.router.name, f"{router.ip}/24", f"{carrier.network}.1")
        site = Site(name, "home", carrier.router.ip, self._behind(name, hosts, lan), [router, carrier.router])
        self._nat(router, "port-restricted")
        for host in site.hosts:
            host.site = site
            self.hosts[host.name] = host
        self.sites[name] = site
        return site

    def _lan(self, router: str, addr: str) -> None:
        self._ip(router, "link add lan type bridge")
        self._ip(router, "link set lan up")
        self._ip(router, f"addr add {addr} dev lan")

    def _join(self, name: str, dev: str, router: str, addr: str, gateway: str) -> None:
        port = f"l{next(self._links)}"
        self._veth(name, dev, router, port)
        self._ip(router, f"link set {port} master lan")
        self._ip(name, f"addr add {addr} dev {dev}")
        self._ip(name, f"route add default via {gateway}")

    def _behind(self, name: str, count: int, lan: int | None) -> list:
        lan = next(self._lans) if lan is None else lan
        self._lan(f"{name}-rt", f"192.168.{lan}.1/24")
        made = []
        for index in range(count):
            host = name if count == 1 else f"{name}{index + 1}"
            ns = self._ns(host)
            self._join(host, "eth0", f"{name}-rt", f"192.168.{lan}.{100 + index}/24", f"192.168.{lan}.1")
            made.append(Host(host, ns, f"192.168.{lan}.{100 + index}"))
        return made

    def _nat(self, router: Host, kind: str) -> None:
        with in_netns(router.ns):
            for key, value in (("ipv4/ip_forward", "1"), ("netfilter/nf_conntrack_tcp_loose", "1")):
                Path("/proc/sys/net", key).write_text(value)
        router.nft(nat_rules(kind, router.ip))

    # -- faults, where the public switch is a process
    def delay(self, name: str, delay_ms: float) -> None:
        """Change the one-way delay of a public host's or a router's access link."""
        self.switch.ports[self._ports[name]] = delay_ms / 1000

    def cut(self, name: str) -> None:
        """Let nothing through from and to a public host or a router, and let nobody know."""
        self.switch.cut.add(self._ports[name])

    def heal(self, name: str) -> None:
        self.switch.cut.discard(self._ports[name])

    # -- life
    def move(self, host: Host, site: Site) -> None:
        """Carries a host out of its network into a site's, as a laptop. It keeps the last byte of its address."""
        gateway = site.router.run(["ip", "-o", "-4", "addr", "show", "dev", "lan"], capture_output=True, text=True)
        network = gateway.stdout.split()[3].rpartition(".")[0]
        self._ip(host.name, "link del eth0")
        host.ip = f"{network}.{host.ip.rpartition('.')[2]}"
        host.site = site
        self._join(host.name, "eth0", f"{site.name}-rt", f"{host.ip}/24", f"{network}.1")

    def renumber(self, site: Site) -> None:
        """Gives a site another public address, as some providers do every night."""
        router = site.routers[-1]
        self._ip(router.name, f"addr del {site.public_ip}/24 dev wan")
        router.ip = site.public_ip = f"{self.net3}.{next(self._ips)}"
        self._ip(router.name, f"addr add {site.public_ip}/24 dev wan")
        self.flush_mappings(site)

    def flush_mappings(self, site: Site) -> None:
        """Makes a site's routers forget all mappings, as a reboot would."""
        for router in site.routers:
            kind = site.kind if router is site.routers[-1] else "port-restricted"
            kind = {"cgnat": "port-restricted", "cgnat-symmetric": "symmetric"}.get(kind, kind)
            # At once: what passed meanwhile would be remembered without being translated.
            router.nft("flush ruleset\n" + nat_rules(kind, router.ip))
            if subprocess.run(["which", "conntrack"], capture_output=True).returncode == 0:
                router.run(["conntrack", "-F"], capture_output=True)

    def close(self) -> None:
        if self.switch is not None:
            self.switch.close()
        for ns in self.namespaces:
            sh("ip", "netns", "del", ns, check=False)
        self.namespaces.clear()

    def __enter__(self) -> Lab:
        return self

    def __exit__(self, *exc) -> None:
        self.close()
