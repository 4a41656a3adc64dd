"""Compiled loops over arrays (`ext/`). Each has one Python owner module, which nothing bypasses."""
