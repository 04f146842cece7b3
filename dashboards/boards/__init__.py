"""One board a file, each with ``board()``."""
