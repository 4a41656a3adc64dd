"""WAN accelerators: matching at the source, the global cache at the target."""
