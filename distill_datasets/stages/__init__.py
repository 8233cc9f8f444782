"""The stages of a run, each a function from its own section and its input folders to a folder."""
