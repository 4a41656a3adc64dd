"""The road of the data, one module per station, and the replica's folder it ends in (FORMAT.md)."""
