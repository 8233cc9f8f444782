"""What a distilled set is good for beside training on it alone: a memory, and a search."""
