"""The networks that distilled sets are made with and measured by, and where draws come from."""
