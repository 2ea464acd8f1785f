"""Yamux: many streams over one connection.

``session`` is the pure core, a state machine whose rules are written at its top; ``frames``, ``events``, ``windows``
and ``receive_queue`` belong to it. ``muxer`` and ``stream`` are the shell that runs it under Trio.
"""
