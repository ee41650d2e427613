"""Runner builds."""
