"""The workflow engine: drives many runs in one process, from their rows."""
