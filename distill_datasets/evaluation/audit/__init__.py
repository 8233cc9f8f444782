"""The audit of somebody else's distilled set: what can be looked for, and how often it is found."""
