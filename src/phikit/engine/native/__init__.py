"""Kernels in C for decoding on CPUs, compiled on first use by the system's compiler."""
