"""Where the code verifier runs programs that it does not trust."""
