"""What a step costs: a model of its tokens, and what the trainer measured."""
