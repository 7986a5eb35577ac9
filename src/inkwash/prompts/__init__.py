"""The meaning of prompts: AUTOMATIC1111's language, and the network's conditions from it."""
