"""Images to start from and to compare with: drawn, chosen or made from the real ones."""
