"""What is trained and how it becomes images: pixels and posters."""
