"""The CPU demo with a language model: SmolLM2-135M-Instruct, a task of reasoning-gym, and CIPO in real verl and vLLM."""
