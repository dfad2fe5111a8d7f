"""Serve an exported model over HTTP: the command. The server itself travels with the exported model."""
