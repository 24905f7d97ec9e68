"""Scaling at work: what computes beside the event loop, and who is told how many replicas are wanted."""
