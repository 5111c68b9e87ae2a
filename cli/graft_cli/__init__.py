"""What a person types: the `graft` command. It starts worker code as processes and never imports it."""
