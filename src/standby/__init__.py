"""standby keeps ready-to-start replicas of virtual machines on another host."""

__version__ = "0.1.0"
