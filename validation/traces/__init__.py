"""Profiler traces: which kernels ran in each decode step and layer, and where the time between them went."""
