"""Frames, messages and links between the backup server and movers, and between movers.

One protocol for both: length-prefixed frames (`frames`), msgspec-typed messages (`messages`), raw
payload bytes behind them. A `Link` is one connection with blocking reads; between processes of one
machine large payloads stay in a `SharedRing` and only slot numbers travel.
PROTOCOL.md describes it.
"""
