"""Models that this repository trains itself, one folder each."""
