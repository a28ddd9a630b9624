"""What is trained beside the policy loss: which rows, and by what."""
