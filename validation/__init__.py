"""A validation suite for LLM-serving optimisations: kernel bits, accuracy, latency and trace in one verdict."""

__version__ = "0.1.0"
