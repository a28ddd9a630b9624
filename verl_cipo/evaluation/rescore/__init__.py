"""Judging again what was scored, by checks that share no code with the verifiers: `evaluate --rescore`."""
