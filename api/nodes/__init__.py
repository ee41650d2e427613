"""GPU nodes and what is loaded on them."""
