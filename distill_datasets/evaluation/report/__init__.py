"""The page that shows what was measured: one HTML file with everything in it."""
