"""The closed dialect of Windows PowerShell that our scripts are written in, and who executes it."""
