"""Architectures, their fresh weights, and weights in files."""
