"""The command `xlm-swcm serve`. The server is in the folder of the exported model."""
