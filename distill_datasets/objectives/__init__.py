"""What is minimized: one file per objective, and no two import each other."""
