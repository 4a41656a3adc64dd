"""Frozen values that every layer shares: extents, machines, jobs, points, replicas, reports.

Nothing here does I/O, reads a clock or knows another layer; only the standard library is used.
"""
