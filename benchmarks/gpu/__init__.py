"""What the library does on a GPU: one command, ``benchmarks/gpu/run.sh``."""
