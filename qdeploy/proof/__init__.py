"""The file against the network it came from."""
