"""Metal Marlin: an OpenAI-compatible server for quantized language models."""

__version__ = "0.1.0"
