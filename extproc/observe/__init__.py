"""What the service has seen: figures for people and machines. Decides nothing."""
