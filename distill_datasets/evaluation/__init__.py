"""Measuring: fresh students trained on what was published, and what they are compared with."""
