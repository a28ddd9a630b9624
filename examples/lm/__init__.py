"""The CPU demo with a language model: CIPO on SmolLM2-135M-Instruct and a task of reasoning-gym."""
