"""What prompts mean: AUTOMATIC1111's language, and from it what the network is conditioned on."""
