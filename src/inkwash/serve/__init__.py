"""The server: a queue in SQLite, processes that draw, and one file for each HTTP dialect. No torch but in `worker`."""
