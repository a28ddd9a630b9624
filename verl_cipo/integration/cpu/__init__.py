"""What verl and vLLM need on a machine without an accelerator: development, tests and the demo."""
