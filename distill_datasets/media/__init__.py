"""Bytes of media files to pixels, and pixels to bytes."""
