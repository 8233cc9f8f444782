"""The machine: processes, randomness, memory, progress."""
