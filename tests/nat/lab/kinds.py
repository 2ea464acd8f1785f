"""The kinds of NAT, as nftables rules.

Mapping / filtering, in the words of RFC 4787 (EI = endpoint-independent, AD = address-dependent, APD = address and port
dependent). All but ``symmetric`` and ``cgnat-symmetric`` preserve the source port where it is free:

- ``none``: public address, no filter
- ``firewalled``: public address, unsolicited inbound dropped (TCP and UDP)
- ``full-cone``: EI / EI: any remote may use a mapping once the host has sent something from that port
- ``restricted``: EI / AD: only remote IPs that the host has sent to, any port
- ``port-restricted``: EI / APD: plain Linux masquerade and conntrack, inbound to the router dropped
- ``symmetric``: APD / APD: masquerade fully-random, a new random port for each flow
- ``udp-blocked``: port-restricted, and all UDP dropped, both ways
- ``hairpin``: port-restricted, and hosts inside reach each other at the public address
- ``cgnat``: port-restricted home router behind a port-restricted carrier NAT (100.64/10 between)
- ``cgnat-symmetric``: the same with a symmetric carrier NAT
- ``reject``: port-restricted, but the router answers unsolicited TCP with RST and UDP with ICMP unreachable, as a Linux
  router without a firewall does; it hurts TCP simultaneous open
"""

from __future__ import annotations

KINDS = (
    "none",
    "firewalled",
    "full-cone",
    "restricted",
    "port-restricted",
    "symmetric",
    "udp-blocked",
    "hairpin",
    "cgnat",
    "cgnat-symmetric",
    "reject",
)


def nat_rules(kind: str, ip: str) -> str:
    """nft rules of one router with devices `wan` and `lan`. Inbound to the router itself from wan is dropped, as home
    routers do (a router that answers RST/ICMP is kind `reject`)."""
    cone = kind in ("full-cone", "restricted", "hairpin")
    maps = learn = pre = post = ""
    unsolicited = "drop"
    snat = "masquerade"
    if kind == "symmetric":
        snat = "masquerade fully-random"
    if kind == "reject":
        unsolicited = "meta l4proto tcp reject with tcp reset; iifname wan reject"
    if cone:
        key = "ipv4_addr . inet_service" if kind == "restricted" else "inet_service"
        for proto in ("tcp", "udp"):
            maps += f" map {proto}m {{ type {key} : ipv4_addr; flags dynamic,timeout; timeout 120s; size 65535; }}\n"
            out = f"ip daddr . {proto} sport" if kind == "restricted" else f"{proto} sport"
            back = f"ip saddr . {proto} dport" if kind == "restricted" else f"{proto} dport"
            learn += f"  iifname lan oifname wan meta l4proto {proto} update @{proto}m {{ {out} : ip saddr }}\n"
            if kind != "hairpin":
                pre += f"  iifname wan meta l4proto {proto} dnat to {back} map @{proto}m\n"
            else:
                pre += f"  iifname lan ip daddr {ip} meta l4proto {proto} dnat to {back} map @{proto}m\n"
        if kind == "hairpin":
            inside = "{ 192.168.0.0/16, 100.64.0.0/10 }"
            post = f"  oifname lan ct status dnat ip saddr {inside} snat to {ip}\n"
    block = "  meta l4proto udp drop\n" if kind == "udp-blocked" else ""
    return f"""
table ip natlab {{
{maps} chain learning {{ type filter hook forward priority -150; policy accept;
{learn} }}
 chain prerouting {{ type nat hook prerouting priority dstnat; policy accept;
{pre} }}
 chain postrouting {{ type nat hook postrouting priority srcnat; policy accept;
  oifname wan {snat}
{post} }}
 chain forwarded {{ type filter hook forward priority 0; policy accept;
{block}  ct state established,related accept
  ct status dnat accept
  iifname wan drop
 }}
 chain in {{ type filter hook input priority 0; policy accept;
  ct state established,related accept
  iifname wan {unsolicited}
 }}
}}
"""
