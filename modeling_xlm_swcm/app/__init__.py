"""A web page to try a model, on this machine or as a Space on the Hub."""
