"""Reading of text files and Hub datasets, in the same formats and with the same errors for all commands."""
