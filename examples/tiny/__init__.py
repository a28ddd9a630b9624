"""The CPU demo: a tiny model, generated word problems, and CIPO in real verl with real vLLM."""
