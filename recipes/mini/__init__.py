"""`mini`: a small Stable Diffusion, trained from nothing on openly licensed drawings."""
