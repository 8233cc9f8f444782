"""What a run would do, take and keep, told before it starts."""
