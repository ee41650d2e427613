"""What jobs made."""
