"""What waits, and who gets which share of the slots."""
