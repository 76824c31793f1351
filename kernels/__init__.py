"""Triton kernels, compiled at run time. One file an op; installed as ``evoworld.kernels``."""
