"""What this system says of itself to the outside: metrics, traces."""
