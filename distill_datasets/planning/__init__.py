"""What a run would do, take and keep, worked out before it starts."""
