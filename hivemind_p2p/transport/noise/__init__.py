"""Noise: libp2p's own handshake, then a data path of ours.

``cipher`` is the pure core (plaintext to bytes for the wire and back), ``channel`` runs it over a ``link``, and
``handshake`` hands a connection over from libp2p to a channel.
"""
