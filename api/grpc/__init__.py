"""gRPC in the api's process: the agents' reports, and health."""
