"""Compiles, checks and runs unmodified .metal files without a Mac. mslc.py is the command."""
