"""Load: programs that put vbnet to work and say how fast it went."""
