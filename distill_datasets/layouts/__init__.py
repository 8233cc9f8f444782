"""Distilled sets that others made: how their files lie, and how one becomes a published folder."""
