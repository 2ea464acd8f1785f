"""The network: streams on connections, over libp2p, which is imported here and nowhere else."""

from hivemind_p2p.transport import light_libp2p

light_libp2p.install()
