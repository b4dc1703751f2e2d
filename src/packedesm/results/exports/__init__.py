"""Finished results in the files that other tools open."""
