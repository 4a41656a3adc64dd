"""One file per revision. A revision never changes once it was released, and uses nothing of the
present tables."""
