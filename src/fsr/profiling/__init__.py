"""Where the time goes: operation and cache counts from a config (no weights), and measured time and memory by stage."""
