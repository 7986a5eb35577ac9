"""The meaning of prompts: AUTOMATIC1111's language, and from it what the network is conditioned on."""
