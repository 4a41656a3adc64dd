"""Hosts: where VMs live. `folder` (VMs as folders, started with QEMU) and `memory` (for tests)."""
