"""Kernels that Apple's compiler made, on the CPU runtime (library.py)."""
