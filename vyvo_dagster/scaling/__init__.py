"""Node pools made larger and smaller: scalers, and the worker that carries operations out."""
