"""The networks that an objective sees, and where its draws come from."""
