"""Jobs (predictions): the gateway."""
