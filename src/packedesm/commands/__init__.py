"""The commands: what each can be asked for, and what it says."""
