"""The published dataset: its content, its files, its card, and how it gets to the Hub."""
