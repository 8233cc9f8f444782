"""Plain supervised training: of students, and of the networks that a squeeze stage trains."""
