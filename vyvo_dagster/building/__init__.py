"""Build backends: from a template, the runner SDK and weights to a runner that an agent can run.

Synchronous: a build runs inside an op, in a worker process of its own.
"""
